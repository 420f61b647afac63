"""The loop: what is read, how rates move, exact resume, and a loss that diverges."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from small import documents, recipe

from sprat.errors import RecipeError, SourceError, TrainingError
from sprat.golf import words
from sprat.golf.batches import Batches
from sprat.golf.loop import run
from sprat.golf.recipe import Recipe
from sprat.golf.schedule import Length, rate
from sprat.golf.training import PATIENCE, Training
from sprat.training.checkpoint import Checkpoint

TEXTS = documents()
TOKENIZER = words.learn(TEXTS, 320)
IDS = words.stream(TOKENIZER, TEXTS)


def training(tokens: int = 256 * 20, seed: int = 0, **settings) -> Training:
    r = recipe(**settings)
    return Training(r, 320, Batches(IDS, r.context, r.batch, seed), Length("tokens", tokens), seed)


def same(a: Training, b: Training) -> bool:
    return all(
        torch.equal(p, q) for p, q in zip(a.result().parameters(), b.result().parameters(), strict=True)
    )


def test_a_pass_reads_every_window_once_and_the_next_reads_them_shifted():
    ids = np.arange(1000)
    batches = Batches(ids, 16, 3, 0)
    reads = [row for i in range(batches.windows // 3) for row in batches[i][0].tolist()]
    starts = sorted(row[0] for row in reads)
    assert len(set(starts)) == len(starts) and len({s % 16 for s in starts}) == 1
    assert all(row == list(range(row[0], row[0] + 16)) for row in reads)
    read, following = batches[7]
    assert torch.equal(read + 1, following) and torch.equal(batches[7][0], Batches(ids, 16, 3, 0)[7][0])
    assert not torch.equal(read, Batches(ids, 16, 3, 1)[7][0])
    with pytest.raises(SourceError, match="need at least 33"):
        Batches(ids[:32], 16, 3, 0)


def test_rates_rise_stay_and_fall_to_nothing():
    shares = np.linspace(0, 1, 101)
    rates = [rate(s, 0.1, 0.4) for s in shares]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5) and rates[10] == rates[60] == 1
    assert rates[80] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert rate(0, 0, 0) == rate(1, 0, 0) == 1


def test_lengths_end_by_tokens_or_by_their_clock():
    assert Length("tokens", 100).share(50, 1e9) == 0.5 and Length("seconds", 10).share(10**9, 5) == 0.5
    assert Length("processor seconds", 10).share(0, 20) == 1
    with pytest.raises(RecipeError, match="above 0"):
        Length("seconds", 0)


def test_training_learns():
    t = training(256 * 60)
    points = run(t)
    assert t.tokens == 256 * 60 and points[-1].share == 1
    assert points[0].loss > 5 and points[-1].loss < 2.5


def test_bf16_computes_what_float32_does_within_its_own_rounding():
    """Weights stay in float32; products are bf16, of 8 bits."""
    exact, short = training(precision="float32"), training(precision="bf16")
    assert short.dtype == torch.bfloat16 and exact.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in short.model.parameters())
    losses = [(exact.advance(), short.advance()) for _ in range(10)]
    assert losses[0][0] != losses[0][1]
    for wide, narrow in losses:
        assert narrow == pytest.approx(wide, abs=0.03)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": 0.9, "accumulate": 2, "batch": 2, "noise": 0.5, "weight_decay": 0.1},
        {"precision": "bf16", "rate_term": 0.6},
    ],
)
def test_a_resumed_training_ends_in_the_same_bits(tmp_path, settings):
    torch.set_num_threads(1)
    whole, broken, resumed = training(**settings), training(**settings), training(**settings)
    run(whole)
    for _ in range(9):
        broken.advance()
    checkpoint = Checkpoint(tmp_path / "c", {"seed": "0"}, 0.0)
    checkpoint.save(broken.state())
    broken.advance()  # what came after the checkpoint is lost
    resumed.restore(checkpoint.load())
    run(resumed)
    assert resumed.step == whole.step == 20 and same(resumed, whole)
    assert not same(whole, training(seed=1, **settings))


def test_a_resumed_training_keeps_the_points_before(tmp_path):
    torch.set_num_threads(1)
    told, checkpoint = run(training(256 * 50)), Checkpoint(tmp_path / "c", {}, 0.0)

    class Killed(Exception):
        pass

    def die(point):
        if point.step > 21:  # the checkpoint before is of a step between two points
            raise Killed

    with pytest.raises(Killed):
        run(training(256 * 50), checkpoint, watch=die)
    again = run(training(256 * 50), checkpoint, saved=checkpoint.load())
    assert len(again) == 20
    for one, other in zip(again, told, strict=True):
        assert (one.share, one.step, one.tokens, one.loss) == (
            other.share,
            other.step,
            other.tokens,
            other.loss,
        )
    assert all(a.seconds < b.seconds for a, b in pairwise(again))


def test_the_mean_of_the_weights_is_what_is_stored():
    t = training(ema=0.5)
    expected = next(t.model.parameters()).detach().clone()
    for _ in range(4):
        t.advance()
        expected = 0.5 * expected + 0.5 * next(t.model.parameters()).detach()
    assert torch.allclose(next(t.result().parameters()), expected, atol=1e-6)


def test_a_diverging_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", {}, 0.0)
    t = training(256 * 100, matrix_rate=1.0, embedding_rate=1.0, clip=0, warm_up=0.05)
    with pytest.raises(
        TrainingError, match=r"diverged at step \d+ .* nats a token.*last good checkpoint is"
    ) as error:
        run(t, checkpoint)
    kept = checkpoint.load()
    # Steps that may be diverging are not kept.
    assert 0 < kept["step"] == t.step + 1 - t.above and kept["above"] == 0
    assert f"step {t.step + 1} " in str(error.value)
    assert all(bool(p.isfinite().all()) for p in kept["model"].values())


def test_a_training_that_ends_above_knowing_nothing_is_no_result(tmp_path, monkeypatch):
    t, checkpoint = training(), Checkpoint(tmp_path / "c", {}, 0.0)
    losses = iter([5.0] * 17 + [9.0] * 3)
    monkeypatch.setattr(t, "_gradients", lambda: next(losses))
    with pytest.raises(
        TrainingError, match=r"ended diverging at step 20 .* 9\.000 nats .*last good checkpoint is"
    ):
        run(t, checkpoint)
    assert checkpoint.load()["step"] == 17


def test_a_loss_that_comes_back_has_not_diverged(monkeypatch):
    t = training()
    losses = iter([9.0] * (PATIENCE - 1) + [5.0] + [9.0] * PATIENCE + [5.0])
    monkeypatch.setattr(t, "_gradients", lambda: next(losses))
    for _ in range(2 * PATIENCE - 1):
        t.advance()
    with pytest.raises(TrainingError, match=f"diverged at step {2 * PATIENCE} "):
        t.advance()
    monkeypatch.setattr(t, "_gradients", lambda: float("nan"))
    t.above = 0
    with pytest.raises(TrainingError, match="nan nats"):
        t.advance()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"widht": 64}, r"golf recipe: unknown key 'widht' \(did you mean 'width'\?\)"),
        ({"width": "64"}, "width must be int"),
        ({"width": 30, "heads": 4}, "a multiple of 2 x heads"),
        ({"heads": 0}, "heads = 0 is not allowed; it must be 1 to 256"),
        ({"vocabulary": 100}, "257 to 16384"),
        ({"activation": "relu2"}, '"int8-zlib" with squared ReLU'),
        ({"warm_up": 0.6, "cool_down": 0.6}, "0 to 1 - warm_up"),
        ({"easy": 0.9, "drop": 0.2}, "easy = 0.9 is not allowed; it must be at most 1 - drop"),
        ({"text": [3]}, "text must be a list of texts, not"),
        ({"teach": {"text": ["a.txt"]}}, r"\[teach\] text = .* it is the student's"),
        ({"fit": {"trelis": 4}}, r"unknown key 'trelis' \(did you mean 'trellis'\?\)"),
    ],
)
def test_a_wrong_recipe_is_refused(values, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_dict(values)
