"""The server against strangers: limits, wrong and malicious requests, clients that leave, many at once."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sprat
from serving import serving
from sprat.errors import SpratError
from sprat.run.serve import prompts
from sprat.run.serve.errors import ApiError
from sprat.run.serve.schema import ChatRequest, CompletionRequest, parse
from sprat.run.serve.server import Settings, build
from toy_engine import ToyEngine

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def artifact(tiny):
    return sprat.open(tiny.file)


@pytest.fixture(scope="module")
def server(artifact):
    with serving(artifact, ToyEngine(never=[0]), max_clients=4, max_tokens=64) as running:
        yield running


def refused(reply, status, message):
    """An OpenAI error body with these words."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    return error


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        (COMPLETE, {}, "prompt: Field required", "prompt"),
        (COMPLETE, [], "must be a JSON object", None),
        (COMPLETE, {"prompt": ""}, "the prompt is empty", "prompt"),
        (COMPLETE, {"prompt": []}, "prompt: ", "prompt"),
        (COMPLETE, {"prompt": {"a": 1}}, "prompt: ", "prompt"),
        (COMPLETE, {"prompt": [320]}, "token 320 is outside the vocabulary of 320", "prompt"),
        (COMPLETE, {"prompt": [-1]}, "prompt.0: ", "prompt.0"),
        (COMPLETE, {"prompt": "x", "echo": True}, "echo is not supported", "echo"),
        (COMPLETE, {"prompt": "x", "suffix": "y"}, "suffix is not supported", "suffix"),
        (COMPLETE, {"prompt": "x", "best_of": 2}, "best_of is not supported", "best_of"),
        (COMPLETE, {"prompt": "x", "temprature": 1}, "(did you mean 'temperature'?)", "temprature"),
        (COMPLETE, {"prompt": "x", "temperature": 3}, "temperature: ", "temperature"),
        (COMPLETE, {"prompt": "x", "temperature": "hot"}, "temperature: ", "temperature"),
        (COMPLETE, {"prompt": "x", "max_tokens": 0}, "max_tokens: ", "max_tokens"),
        (COMPLETE, {"prompt": "x", "max_tokens": True}, "max_tokens: ", "max_tokens"),
        (COMPLETE, {"prompt": "x", "max_tokens": 65}, "this server allows 64", "max_tokens"),
        (COMPLETE, {"prompt": "x", "n": 128}, "128 answers at once", "n"),
        (COMPLETE, {"prompt": "x", "stop": ""}, "stop", "stop"),
        (COMPLETE, {"prompt": "x", "stop": [1]}, "stop.0: ", "stop.0"),
        (COMPLETE, {"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias maps token ids", "logit_bias"),
        (COMPLETE, {"prompt": "x", "stream_options": {"include_usage": True}}, "needs stream", "stream_options"),
        (CHAT, {"messages": []}, "messages: ", "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role: ", "messages.0.role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content: ", "messages.0.content"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
            None,
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "nmae": "y"}]},
            "messages.0.nmae: unknown field (did you mean 'name'?)",
            "messages.0.nmae",
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls is not supported",
            "messages.0.tool_calls",
        ),
        (
            CHAT,
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
            "messages.0.role: Input should be 'system', 'developer', 'user' or 'assistant'",
            "messages.0.role",
        ),
        (
            COMPLETE,
            {"prompt": "x", "stream": True, "stream_options": {"include_usaeg": True}},
            "stream_options.include_usaeg: unknown field (did you mean 'include_usage'?)",
            "stream_options.include_usaeg",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "tools is not supported", "tools"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}, "needs logprobs", "top_logprobs"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}},
            "response_format is not supported",
            "response_format",
        ),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_and_named(server, path, body, message, param):
    error = refused(server.post(body, path), 400, message)
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


def test_what_openai_clients_send_and_means_nothing_here_is_let_through(server):
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "model": "whatever",
        "max_tokens": 2,
        "store": False,
        "metadata": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "user": "me",
        "temperature": None,
        "n": None,
        "stop": None,
    }
    assert server.post(body, CHAT).status_code == 200


def test_an_answer_as_openais_client_keeps_it_may_be_sent_back(server):
    asked = {"role": "user", "content": "x"}
    said = server.openai.chat.completions.create(model="x", messages=[asked], max_tokens=2).choices[0].message
    back = said.model_dump()  # with everything that it has not: tool_calls, audio, ...
    assert back.keys() > {"role", "content", "refusal", "tool_calls"}
    for more in ({}, {"annotations": [], "tool_calls": []}):
        body = {"messages": [asked, back | more, asked], "max_tokens": 2}
        assert server.post(body, CHAT).status_code == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b'{"prompt": "\\ud800"}', "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no valid JSON"),
        (b'{"\\ud800": 1}', "no valid JSON"),
    ],
)
def test_what_is_no_json_is_refused(server, content, message):
    refused(server.http.post(COMPLETE, content=content), 400, message)


def test_other_places_and_methods(server):
    refused(server.http.get("/v1/chat/completion"), 404, "(did you mean '/v1/chat/completions'?)")
    reply = server.http.get(COMPLETE)
    refused(reply, 405, "does not take GET")
    assert reply.headers["allow"] == "POST"
    assert server.http.get("/docs").status_code == server.http.get("/openapi.json").status_code == 404


def test_a_request_that_is_too_large_is_refused_unread(server):
    big = b'{"prompt": "' + b"x" * (300 << 10) + b'"}'
    refused(server.http.post(COMPLETE, content=big), 413, "larger than 278,528 bytes")

    def chunks():
        for _ in range(9):
            yield b"x" * 65536

    refused(server.http.post(COMPLETE, content=chunks()), 413, "larger than")


def test_foreign_pages_are_refused(server):
    for headers, message in (
        ({"Origin": "https://evil.example"}, "pages of 'https://evil.example'"),
        ({"Origin": "null"}, "pages of 'null'"),
        ({"Host": "evil.example"}, "the host 'evil.example'"),
        ({"Host": "[::"}, "the host"),
    ):
        refused(server.post({"prompt": "x"}, headers=headers), 403, message)
    own = {"Origin": server.url}
    assert server.post({"prompt": "x", "max_tokens": 1}, headers=own).status_code == 200


def test_a_key_is_asked_for(artifact):
    with serving(artifact, ToyEngine(), api_key="secret") as server:
        assert server.openai.models.list().data
        refused(server.http.get("/v1/models"), 401, "an API key is needed")
        reply = server.http.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        assert refused(reply, 401, "the API key is wrong")["code"] == "invalid_api_key"
        assert server.http.get("/").status_code == server.http.get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.openai.with_options(api_key="wronger").models.list()


def test_a_full_server_says_when_to_come_back(artifact):
    engine = ToyEngine(context=5000, delay=0.01, never=[0])
    with serving(artifact, engine, max_clients=1, max_waiting=1) as server, ThreadPoolExecutor(2) as pool:
        body = {"prompt": "x", "max_tokens": 60}
        waiting = [pool.submit(server.post, body) for _ in range(2)]
        while server.scheduler.waiting + server.scheduler.running < 2:
            time.sleep(0.005)
        reply = server.post(body)
        assert refused(reply, 429, "try again in")["code"] == "queue_full"
        assert int(reply.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            server.openai.completions.create(model="x", **body)
        assert [w.result().status_code for w in waiting] == [200, 200]


def test_a_request_that_takes_too_long_is_ended(artifact):
    engine = ToyEngine(context=5000, delay=0.01, never=[0])
    with serving(artifact, engine, timeout=0.3) as server:
        refused(server.post({"prompt": "x", "max_tokens": 4000}), 504, "limit of 0.3 s")
        with server.http.stream(
            "POST", COMPLETE, json={"prompt": "x", "max_tokens": 4000, "stream": True}
        ) as reply:
            lines = [line for line in reply.iter_lines() if line]
        assert reply.status_code == 200 and len(lines) > 3
        assert json.loads(lines[-1][6:])["error"]["code"] == "timeout"
        assert server.idle() and engine.tokens < 300


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_computing(artifact, stream):
    engine = ToyEngine(context=100_000, delay=0.005, never=[0])
    with serving(artifact, engine) as server:
        body = json.dumps({"prompt": "x", "max_tokens": 90_000, "stream": stream}).encode()
        head = f"POST {COMPLETE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as raw:
            raw.sendall(head + body)
            while engine.tokens < 10:
                time.sleep(0.005)
        assert server.idle()
        seen = engine.tokens
        time.sleep(0.05)
        assert engine.tokens == seen < 1000


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_news(artifact, capfd):
    with serving(artifact, ToyEngine()) as server:
        head = f"POST {COMPLETE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as raw:
            raw.sendall(head + b'{"prompt')
            time.sleep(0.1)
        assert server.post({"prompt": "x"}).status_code == 200
    assert capfd.readouterr().err == ""


def test_a_closing_server_ends_what_runs(artifact):
    engine = ToyEngine(context=100_000, delay=0.005, never=[0])
    with serving(artifact, engine) as server:
        with server.http.stream(
            "POST", COMPLETE, json={"prompt": "x", "max_tokens": 90_000, "stream": True}
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.scheduler.close()
            last = [line for line in lines if line][-1]
        assert json.loads(last[6:])["error"]["code"] == "shutting_down"
        refused(server.post({"prompt": "x"}), 503, "shutting down")
        assert server.http.get("/health").status_code == 503
    assert engine.open == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({*CompletionRequest.model_fields, *ChatRequest.model_fields, "echo", "tools", "metadata"})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | JSON, "content": st.text(max_size=20) | JSON}
)
HOSTILE = st.one_of(
    JSON,
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6),
    st.builds(
        lambda prompt, rest: {**rest, "prompt": prompt},
        st.text(max_size=30) | st.lists(st.integers(-5, 400), max_size=5) | JSON,
        st.dictionaries(st.sampled_from(FIELDS), JSON | st.integers(0, 5), max_size=2),
    ),
    st.builds(
        lambda messages, rest: {**rest, "messages": messages},
        st.lists(MESSAGE, max_size=3),
        st.dictionaries(st.sampled_from(FIELDS), JSON | st.integers(0, 5), max_size=2),
    ),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HOSTILE, st.sampled_from([CHAT, COMPLETE]))
def test_no_body_makes_the_server_fail(server, body, path):
    reply = server.http.post(path, content=json.dumps(body).encode())
    assert reply.status_code in (200, 400), (body, reply.text)
    if reply.status_code == 400:
        assert reply.json()["error"]["message"]
    elif not (isinstance(body, dict) and body.get("stream")):
        assert reply.json()["choices"]


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60))
def test_no_bytes_make_the_server_fail(server, content):
    assert server.http.post(COMPLETE, content=content).status_code in (200, 400)


def test_a_short_context_still_serves(artifact):
    for context in (1, 10_000):
        with pytest.raises(SpratError, match="context must lie between 2 and 256"):
            build(artifact, ToyEngine(), Settings(context=context))
    with serving(artifact, ToyEngine(never=[0]), context=2) as server:
        reply = server.post({"prompt": [7]}).json()
        assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (1, "length")


def test_the_defaults_of_a_request_are_openais(tiny, artifact):
    from sprat.run.tokenizer import open_tokenizer

    limits = prompts.Limits(256, 100, 8, 10)
    tokenizer = open_tokenizer(artifact)
    (text,) = prompts.choices(parse(CompletionRequest, {"prompt": "the"}), tokenizer, 320, limits)
    assert (text.max_tokens, text.sampler.settings.temperature) == (16, 1.0)
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "max_completion_tokens": 7}
    (said,) = prompts.choices(parse(ChatRequest, chat), tokenizer, 320, limits)
    assert said.max_tokens == 7
    del chat["max_tokens"], chat["max_completion_tokens"]
    (said,) = prompts.choices(parse(ChatRequest, chat), tokenizer, 320, limits)
    assert said.max_tokens == 100


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (ChatRequest, {"messages": [{"role": "user", "content": "the cat"}]}, "messages"),
        (CompletionRequest, {"prompt": ["a", "the cat"]}, "prompt"),
    ],
)
def test_a_token_without_a_row_is_refused_before_it_fails_a_batch(artifact, kind, body, param):
    """Tokenizers may know more tokens than their model."""
    from sprat.run.tokenizer import open_tokenizer

    tokenizer, limits = open_tokenizer(artifact), prompts.Limits(256, 100, 8, 10)
    rows = max(tokenizer.encode("the cat"))
    assert prompts.choices(parse(kind, body), tokenizer, rows + 1, limits)
    with pytest.raises(ApiError, match=f"token {rows} is outside the vocabulary of {rows}") as refusal:
        prompts.choices(parse(kind, body), tokenizer, rows, limits)
    assert (refusal.value.status, refusal.value.param) == (400, param)


def test_many_clients_with_cancellations_and_nonsense(artifact):
    """Every well-formed request is answered, and every session comes back."""
    engine = ToyEngine(context=256, delay=0.001, never=[0])
    clients, rounds, answered, wrong = 24, 6, [], []

    def client(number):
        import random

        dice = random.Random(number)
        for turn in range(rounds):
            body = {"prompt": f"the cat {number} {turn}", "max_tokens": dice.randint(1, 40), "seed": turn}
            kind = dice.choice(["whole", "stream", "leave", "nonsense"])
            if kind == "whole":
                reply = server.post(body).json()
                answered.append(reply["usage"]["completion_tokens"] == body["max_tokens"])
            elif kind == "nonsense":
                wrong.append(server.post(body | {"max_tokens": -1}).status_code == 400)
            else:
                with server.http.stream("POST", COMPLETE, json=body | {"stream": True}) as reply:
                    lines = reply.iter_lines()
                    if kind == "leave":
                        next(lines)
                    else:
                        answered.append([line for line in lines if line][-1] == "data: [DONE]")

    with serving(artifact, engine, max_clients=8) as server:
        threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert server.idle()
        assert len(answered) > 40 and all(answered) and wrong and all(wrong)
        assert max(engine.batches) == 8
        assert engine.open == server.scheduler.sessions[1] <= 4
    assert engine.open == 0
