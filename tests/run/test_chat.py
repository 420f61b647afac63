"""Conversations: what is computed again and what is not, what is forgotten, and what stays."""

import json

import pytest

import sprat
from sprat.errors import RequestError, SpratError
from sprat.run.chat import Conversation, common
from sprat.run.sampling import Sampling
from sprat.run.tokenizer import open_tokenizer
from toy_engine import ToyEngine


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return open_tokenizer(sprat.open(tiny.file))


def talk(tokenizer, engine=None, **options):
    return Conversation(engine or ToyEngine(), tokenizer, **options)


def say(conversation, text, **options):
    answer = conversation.ask(text, **options)
    text = "".join(answer)
    assert text == answer.text
    return text


def test_a_kept_session_answers_as_one_that_reads_everything_again(tokenizer):
    options = {"max_tokens": 8, "sampling": Sampling(temperature=0.8, seed=4)}
    kept = talk(tokenizer, **options)
    answers = []
    for i, text in enumerate(("the cat", "the dog sat on the mat", "a small bird")):
        # What the turn before wrote may become other tokens when its text is read: the session is then cut there.
        new = talk(tokenizer, **options)
        new.messages, new.stats.answers = list(kept.messages), i
        answers.append(say(kept, text))
        assert answers[-1] == say(new, text)
        assert kept.held == kept.session.ids
    assert kept.stats.reused_tokens > 0
    assert kept.stats.read_tokens + kept.stats.reused_tokens == sum(
        len(tokenizer.chat(kept.messages[: 2 * i + 1])) for i in range(3)
    )
    assert [m["role"] for m in kept.messages] == ["user", "assistant"] * 3
    assert [m["content"] for m in kept.messages[1::2]] == answers


def test_each_answer_is_drawn_anew_and_the_seed_decides(tokenizer):
    def run(seed):
        conversation = talk(tokenizer, max_tokens=8, sampling=Sampling(temperature=1.0, seed=seed))
        first = say(conversation, "the cat")
        conversation.reset()
        return first, say(conversation, "the cat")

    assert run(1) == run(1) != run(2)
    assert run(1)[0] != run(1)[1]


def test_reset_forgets_all_but_the_system_message(tokenizer):
    conversation = talk(tokenizer, max_tokens=4, system="the old tree")
    first = say(conversation, "the cat")
    assert conversation.messages[0] == {"role": "system", "content": "the old tree"}
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "the old tree"}]
    assert say(conversation, "the cat") == first


def test_old_turns_make_room_and_the_answer_says_so(tokenizer):
    conversation = talk(tokenizer, ToyEngine(context=48, never=[0]), max_tokens=6, system="the fish")
    dropped = []
    for i in range(8):
        answer = conversation.ask(f"the cat sat {i}")
        list(answer)
        dropped.append(answer.dropped)
        assert len(answer.prompt) + 48 // 8 < 48
        assert conversation.messages[0]["role"] == "system"
        assert conversation.messages[-2]["content"] == f"the cat sat {i}"
        assert [m["role"] for m in conversation.messages[1:]] == ["user", "assistant"] * (
            len(conversation.messages) // 2
        )
    assert dropped[:2] == [0, 0]
    assert sum(dropped) >= 4


def test_a_message_that_does_not_fit_alone_is_refused_and_not_kept(tokenizer):
    conversation = talk(tokenizer, ToyEngine(context=32), max_tokens=4)
    said = say(conversation, "the cat")
    before = list(conversation.messages)
    with pytest.raises(RequestError, match="the context holds 32"):
        conversation.ask("the dog ate " * 40)
    assert conversation.messages == before
    conversation.reset()
    assert say(conversation, "the cat") == said


def test_an_answer_ends_where_the_context_does(tokenizer):
    conversation = talk(tokenizer, ToyEngine(context=24, never=[0]))
    answer = conversation.ask("the cat")
    list(answer)
    assert answer.generation.finish == "context"
    assert conversation.session.length == 24


def test_a_stopped_answer_stays_and_the_next_goes_on(tokenizer):
    conversation = talk(tokenizer, ToyEngine(never=[0]))
    count = iter(range(100))
    answer = conversation.ask("the cat", stopped=lambda: next(count) > 5)
    text = "".join(answer)
    assert answer.generation.finish == "stopped"
    assert conversation.messages[-1] == {"role": "assistant", "content": text}
    assert conversation.held == conversation.session.ids
    # Stopped before the first word: the question is taken back.
    list(conversation.ask("the dog", stopped=lambda: True))
    assert conversation.messages[-1] == {"role": "assistant", "content": text}
    conversation.max_tokens = 3
    assert say(conversation, "the bird")


def test_an_answer_that_nobody_reads_to_its_end_is_kept_as_far_as_it_was(tokenizer):
    conversation = talk(tokenizer, ToyEngine(never=[0]))
    pieces = iter(conversation.ask("the cat"))
    first = next(pieces)
    pieces.close()
    assert conversation.messages[-1]["content"] == first
    assert conversation.held == conversation.session.ids


def test_save_writes_what_was_said(tokenizer, tmp_path):
    conversation = talk(tokenizer, max_tokens=4)
    say(conversation, "the 🐟")
    conversation.save(tmp_path / "chat.json", "tiny.sprat")
    said = json.loads((tmp_path / "chat.json").read_text("utf-8"))
    assert said["messages"] == conversation.messages
    assert said["stats"]["answers"] == 1
    assert (said["schema"], said["model"]) == ("sprat.chat/1", "tiny.sprat")
    with pytest.raises(SpratError, match="cannot write"):
        conversation.save(tmp_path / "absent" / "chat.json", "tiny.sprat")
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


def test_a_model_without_a_chat_template_is_refused(tokenizer):
    from dataclasses import replace

    with pytest.raises(RequestError, match=r"no chat template: .*--raw"):
        talk(replace(tokenizer, chat_template=None))


def test_close_gives_the_session_back(tokenizer):
    engine = ToyEngine()
    conversation = talk(tokenizer, engine)
    assert engine.open == 1
    conversation.close()
    assert engine.open == 0


def test_the_common_beginning_leaves_one_token_to_compute():
    assert common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common([1, 2, 3], [1, 2, 3]) == 2
    assert common([], [1]) == common([5], [1]) == 0
    assert common([1, 2, 3, 4], [1, 2]) == 1
