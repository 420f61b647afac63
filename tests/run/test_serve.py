"""The server of a tiny real file, through OpenAI's own client."""

import json

import numpy as np
import openai
import pytest

import sprat
from serving import serving
from sprat.run.generate import generate
from sprat.run.sampling import Sampler, Sampling, log_softmax
from sprat.run.tokenizer import open_tokenizer
from sprat.run.torch_engine import TorchEngine

CHAT = [{"role": "user", "content": "the cat sat"}]


@pytest.fixture(scope="module")
def artifact(tiny):
    return sprat.open(tiny.file)


@pytest.fixture(scope="module")
def tokenizer(artifact):
    return open_tokenizer(artifact)


@pytest.fixture(scope="module")
def server(artifact):
    with serving(artifact, TorchEngine(artifact), max_clients=4) as running:
        yield running


@pytest.fixture(autouse=True)
def released(server):
    yield
    assert server.idle()


def written(server, ids, count, sampling=None):
    """What the engine writes behind `ids` when it is alone: (tokens, the logits of each)."""
    sampler, session = Sampler(sampling or Sampling(), ids), server.engine.session()
    tokens, every = [], []
    step = list(ids)
    while len(tokens) < count:
        logits = server.engine.step([session], [step])[0]
        token = sampler.draw(logits)
        if token == 0:
            break
        tokens.append(token)
        every.append(logits)
        step = [token]
    return tokens, np.array(every)


def test_models(server, tiny):
    (model,) = server.openai.models.list().data
    assert (model.id, model.owned_by, model.created) == ("tiny", "sprat", int(tiny.file.stat().st_mtime))
    assert server.openai.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match=r"there is no model 'tine' \(did you mean 'tiny'\?\)"):
        server.openai.models.retrieve("tine")


def test_a_chat_answers_as_run_does(server, artifact):
    for seed in (1, 2):
        expected = generate(
            artifact,
            "the cat sat",
            12,
            Sampling(temperature=0.9, seed=seed),
            chat=True,
            engine=TorchEngine(artifact),
        )
        reply = server.openai.chat.completions.create(
            model="tiny", messages=CHAT, max_completion_tokens=12, temperature=0.9, seed=seed
        )
        assert reply.choices[0].message.content == "".join(expected)
        assert reply.choices[0].message.role == "assistant"
        assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")


def test_a_completion_continues(server, artifact):
    reply = server.openai.completions.create(model="tiny", prompt="the cat sat", max_tokens=9, temperature=0)
    assert reply.choices[0].text == "".join(
        generate(artifact, "the cat sat", 9, chat=False, engine=TorchEngine(artifact))
    )
    assert reply.object == "text_completion"


def test_usage_and_the_default_length(server, tokenizer):
    ids = tokenizer.encode("the cat sat")
    reply = server.openai.completions.create(model="tiny", prompt="the cat sat", temperature=0)
    tokens, _ = written(server, ids, 16)
    assert reply.usage.prompt_tokens == len(ids)
    assert reply.usage.completion_tokens == len(tokens)
    assert reply.usage.total_tokens == len(ids) + len(tokens)
    assert reply.choices[0].finish_reason == ("length" if len(tokens) == 16 else "stop")


def test_a_stream_is_the_answer_in_pieces(server):
    options = {"model": "tiny", "messages": CHAT, "max_tokens": 20, "temperature": 1.2, "seed": 3}
    whole = server.openai.chat.completions.create(**options)
    parts = list(
        server.openai.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert parts[0].choices[0].delta.role == "assistant"
    assert len(parts) > 5
    assert (
        "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        == whole.choices[0].message.content
    )
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == whole.choices[0].finish_reason
    assert [p.usage for p in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].choices == []
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({p.id for p in parts}) == 1
    plain = list(server.openai.completions.create(model="tiny", prompt="the", max_tokens=4, stream=True))
    assert all(p.object == "text_completion" for p in plain)
    assert plain[-1].choices[0].finish_reason in ("length", "stop")


def test_the_raw_stream_ends_with_done(server):
    with server.http.stream("POST", "/v1/completions", json={"prompt": "the", "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line[6:])["choices"] for line in lines[:-1])


def test_several_choices_and_prompts(server):
    def texts(**options):
        reply = server.openai.completions.create(
            model="tiny", max_tokens=6, temperature=1.5, seed=7, **options
        )
        assert [choice.index for choice in reply.choices] == list(range(len(reply.choices)))
        return [choice.text for choice in reply.choices], reply.usage

    alone, used_alone = texts(prompt="the cat")
    three, used = texts(prompt="the cat", n=3)
    assert len(set(three)) == 3 and three[0] == alone[0]
    assert used.prompt_tokens == used_alone.prompt_tokens
    four, used = texts(prompt=["the cat", "a dog"], n=2)
    assert len(four) == 4 and four[:2] == three[:2]
    assert used.prompt_tokens > used_alone.prompt_tokens


def test_tokens_may_be_given_instead_of_text(server, tokenizer):
    ids = tokenizer.encode("the cat sat")
    options = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    text = server.openai.completions.create(prompt="the cat sat", **options).choices[0].text
    assert server.openai.completions.create(prompt=ids, **options).choices[0].text == text
    both = server.openai.completions.create(prompt=[ids, ids[:1]], **options).choices
    assert both[0].text == text


def test_seeds_repeat_and_their_absence_does_not(server):
    def text(**options):
        return server.openai.completions.create(
            model="tiny", prompt="the", max_tokens=12, temperature=1.5, **options
        ).choices[0].text  # fmt: skip

    assert text(seed=5) == text(seed=5) != text(seed=-6)
    assert len({text() for _ in range(4)}) > 1


def test_stop_strings_across_tokens(server):
    options = {"model": "tiny", "prompt": "the cat", "max_tokens": 40, "temperature": 1.0, "seed": 11}
    whole = server.openai.completions.create(**options).choices[0].text
    assert len(whole) > 20
    for stop in (whole[7:10], whole[5:16], [whole[12:15], whole[9:13]], ["never to be found", whole[0]]):
        every = [stop] if isinstance(stop, str) else stop
        cut = min(at for s in every if (at := whole.find(s)) >= 0)
        choice = server.openai.completions.create(**options, stop=stop).choices[0]
        assert (choice.text, choice.finish_reason) == (whole[:cut], "stop")
        parts = list(server.openai.completions.create(**options, stop=stop, stream=True))
        assert "".join(part.choices[0].text for part in parts) == whole[:cut]
        assert parts[-1].choices[0].finish_reason == "stop"
    held = server.openai.completions.create(**options, stop=whole[-3:] + "x").choices[0]
    assert held.text == whole  # what looked like the beginning of a stop string comes in the end


def test_logprobs_of_a_chat(server, tokenizer):
    ids = tokenizer.chat(CHAT)
    tokens, logits = written(server, ids, 10)
    expected = log_softmax(logits)
    options = {"model": "tiny", "messages": CHAT, "max_tokens": 10, "temperature": 0, "logprobs": True}
    content = server.openai.chat.completions.create(**options, top_logprobs=3).choices[0].logprobs.content
    assert len(content) == len(tokens)
    for found, token, row in zip(content, tokens, expected, strict=True):
        assert bytes(found.bytes) == tokenizer.token_bytes(token)
        assert found.logprob == pytest.approx(row[token], abs=1e-4)
        assert [x.logprob for x in found.top_logprobs] == pytest.approx(sorted(row)[:-4:-1], abs=1e-4)
    assert found.top_logprobs[0].token == found.token
    parts = list(server.openai.chat.completions.create(**options, stream=True))
    streamed = [x for p in parts if p.choices[0].logprobs for x in p.choices[0].logprobs.content]
    assert [x.token for x in streamed] == [x.token for x in content]


def test_logprobs_of_a_completion(server):
    reply = server.openai.completions.create(
        model="tiny", prompt="the cat", max_tokens=8, temperature=0, logprobs=2
    )
    found = reply.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 8
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    assert all(len(top) <= 2 for top in found.top_logprobs)
    assert found.token_logprobs[0] == pytest.approx(max(found.top_logprobs[0].values()))


def test_penalties_and_bias_reach_the_sampler(server, tokenizer):
    token = tokenizer.encode(" fish", special=False)[0]
    forced = server.openai.completions.create(
        model="tiny", prompt="the", max_tokens=3, temperature=0, logit_bias={str(token): 100}
    )
    assert forced.choices[0].text == " fish" * 3
    penalised = server.openai.completions.create(
        model="tiny", prompt="the", max_tokens=12, temperature=0, extra_body={"repetition_penalty": 5.0}
    )
    tokens, _ = written(server, tokenizer.encode("the"), 12, Sampling(repetition_penalty=5.0))
    assert penalised.choices[0].text == tokenizer.decode(tokens)
    greedy = server.openai.completions.create(
        model="tiny", prompt="the", max_tokens=6, extra_body={"top_k": 1, "min_p": 0.1}
    )
    assert greedy.choices[0].text == tokenizer.decode(written(server, tokenizer.encode("the"), 6)[0])


def test_the_next_turn_of_a_chat_reads_only_what_is_new(server):
    options = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    question = [
        {"role": "user", "content": "the small bird sang in the old tree and the dog ate the big fish"}
    ]
    first = server.openai.chat.completions.create(messages=question, **options)
    said = [*question, {"role": "assistant", "content": first.choices[0].message.content}]
    second = server.openai.chat.completions.create(
        messages=[*said, {"role": "user", "content": "the mat"}], **options
    )
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


def test_messages_in_parts_and_developers(server):
    options = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    plain = [{"role": "system", "content": "a tree"}, *CHAT]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "a tr"}, {"type": "text", "text": "ee"}]},
        *CHAT,
    ]
    answers = [
        server.openai.chat.completions.create(messages=m, **options).choices[0].message.content
        for m in (plain, parts)
    ]
    assert answers[0] == answers[1]


def test_a_text_may_fill_the_context_and_no_more(server, tokenizer):
    room = server.openai.completions.create(model="tiny", prompt=[9] * 250, max_tokens=100, temperature=0,
                                            logit_bias={"0": -100})  # fmt: skip
    assert (room.usage.completion_tokens, room.choices[0].finish_reason) == (6, "length")
    with pytest.raises(
        openai.BadRequestError, match="the text has 256 tokens; the context holds 256"
    ) as error:
        server.openai.completions.create(model="tiny", prompt=[9] * 256)
    assert error.value.code == "context_length_exceeded"


def test_the_page_needs_nothing_from_elsewhere(server):
    reply = server.http.get("/")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    loaded = reply.text.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in loaded and "https:" not in loaded and "src=" not in loaded
    assert "prefers-color-scheme" in loaded and "viewport" in loaded


def test_health(server):
    said = server.http.get("/health").json()
    assert (said["status"], said["model"], said["running"], said["waiting"]) == ("ok", "tiny", 0, 0)
