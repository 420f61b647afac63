"""What a training has beside the text: bits of the weights, pruning, a curriculum, a teacher; each against a plain
reference."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from small import documents, recipe, write
from test_model import random_model

import sprat
from sprat.errors import RecipeError, SourceError, SpratError
from sprat.golf import checkpoints, corpus, prune, teacher, words
from sprat.golf.batches import Batches
from sprat.golf.curriculum import MASS, Curriculum, bigram
from sprat.golf.golf import golf
from sprat.golf.loop import run
from sprat.golf.rate_term import RateTerm
from sprat.golf.schedule import Length
from sprat.golf.training import Training
from sprat.methods.distil import divergence
from sprat.training.checkpoint import Checkpoint

TEXTS = documents()
TOKENIZER = words.learn(TEXTS, 320)
IDS = words.stream(TOKENIZER, TEXTS)


def training(tokens: int = 256 * 20, taught=None, **settings) -> Training:
    r = recipe(**settings)
    return Training(r, 320, Batches(IDS, r.context, r.batch, 0), Length("tokens", tokens), 0, taught)


def test_the_rate_is_the_bits_of_laplacian_rows():
    weights = [torch.randn(3, 8), torch.randn(2, 5)]
    term = RateTerm.begin(weights, 3.0)
    expected = 0.0
    for w, step in zip(weights, term.steps, strict=True):
        assert step == pytest.approx(
            float((w**2).mean()) ** 0.5 * math.sqrt(2 * math.pi * math.e) / 8, rel=1e-5
        )
        for row in w.tolist():
            b = sum(map(abs, row)) / len(row)
            expected += len(row) * math.log2(1 + 2 * math.e * b / step)
    assert float(term.bits()) == pytest.approx(expected / 34, rel=1e-5)
    # A Laplacian's entropy at fine steps, and nothing for zeros.
    sample = torch.distributions.Laplace(0.0, 1.0).sample((4, 100_000))
    fine = RateTerm([sample], [0.05])
    counts = (
        np.array(list(Counter(torch.round(sample / 0.05).int().flatten().tolist()).values())) / sample.numel()
    )
    assert float(fine.bits()) == pytest.approx(float(-(counts * np.log2(counts)).sum()), abs=0.03)
    assert float(RateTerm([torch.zeros(4, 4)], [0.1]).bits()) == 0


def test_the_rate_term_makes_weights_cheaper():
    def bits(**settings) -> float:
        t = training(256 * 60, **settings)
        run(t)
        whole = RateTerm(t.rounded, [0.01] * len(t.rounded))
        return whole.bits().item()

    assert bits(rate_term=0.8, rate_weight=1.0) < bits() - 0.1


def test_saliency_is_what_a_neuron_adds_and_the_least_go():
    model, ids = random_model(), torch.randint(0, 320, (2, 10), generator=torch.Generator().manual_seed(0))
    found = prune.saliency(model, ids)
    assert set(found) == {"model.layers.0.mlp", "model.layers.1.mlp"}
    mlp = model.model.layers[0].mlp
    seen = []
    handle = mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model(ids)
    handle.remove()
    x = seen[0].reshape(-1, 32)
    for j in (0, 17, 63):
        gate, up = x @ mlp.gate_proj.weight[j], x @ mlp.up_proj.weight[j]
        h = gate / (1 + (-gate).exp()) * up
        expected = (h.abs().mean() * mlp.down_proj.weight[:, j].norm()).item()
        assert float(found["model.layers.0.mlp"][j]) == pytest.approx(expected, rel=1e-4)
    keep = prune.kept(found, 40)["model.layers.0.mlp"]
    values = found["model.layers.0.mlp"]
    gone = sorted(set(range(64)) - set(keep.tolist()))
    assert keep.tolist() == sorted(keep.tolist()) and values[gone].max() <= values[keep].min()


def test_what_is_pruned_is_as_if_its_neurons_were_zero_and_momentum_stays():
    t = training(
        prune_from=64, inner=40, prune_at=0.5, matrix_rate=1e-6, embedding_rate=1e-6, vector_rate=1e-6
    )
    for _ in range(10):
        t.advance()
    assert t.inner == 64 and t.share == 0.5
    read, _ = t.batches[t.step]
    keep = prune.kept(prune.saliency(t.model, read), 40)
    moment = t.optimizers[0].state[t.model.model.layers[1].mlp.down_proj.weight]["momentum"].clone()
    wide = t.model
    with torch.no_grad():
        for name, module in wide.named_modules():
            if name in keep:
                gone = [j for j in range(64) if j not in keep[name].tolist()]
                module.down_proj.weight[:, gone] = 0
        expected = wide(read)
        t._prune()
        assert torch.allclose(t.model(read), expected, atol=1e-5)
    down = t.model.model.layers[1].mlp.down_proj.weight
    assert down.shape == (32, 40)
    assert torch.equal(t.optimizers[0].state[down]["momentum"], moment[:, keep["model.layers.1.mlp"]])
    embedding = t.model.model.embed_tokens.weight
    assert int(t.optimizers[1].state[embedding]["step"]) == 10
    t.advance()
    assert t.result().model.layers[0].mlp.gate_proj.weight.shape == (40, 32)


@pytest.mark.parametrize("stop", [4, 9, 17])
def test_pruning_rate_and_teacher_resume_to_the_same_bits(tmp_path, stop):
    torch.set_num_threads(1)
    settings = {"prune_from": 80, "prune_at": 0.3, "rate_term": 0.6, "ema": 0.9, "distill": 0.5}
    taught = random_model()
    whole, broken, resumed = (training(taught=taught, **settings) for _ in range(3))
    run(whole)
    for _ in range(stop):
        broken.advance()
    checkpoint = Checkpoint(tmp_path / "c", {}, 0.0)
    checkpoint.save(broken.state())
    resumed.restore(checkpoint.load())
    run(resumed)
    assert resumed.step == whole.step and resumed.inner == 64
    for p, q in zip(resumed.result().parameters(), whole.result().parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_bigram_model_is_its_formula():
    ids = np.random.default_rng(0).integers(0, 7, 200).astype(np.int32)
    single, pairs = Counter(ids.tolist()), Counter(zip(ids.tolist(), ids.tolist()[1:], strict=False))
    before = Counter(ids.tolist()[:-1])
    found = bigram(ids, 9)
    for i in range(len(ids) - 1):
        a, b = int(ids[i]), int(ids[i + 1])
        p = (pairs[a, b] + MASS * (single[b] + 1) / 209) / (before[a] + MASS)
        assert found[i] == pytest.approx(-math.log(p))
    assert sum(
        (MASS * (single[b] + 1) / 209 + pairs[3, b]) / (before[3] + MASS) for b in range(9)
    ) == pytest.approx(1)


def test_a_curriculum_reads_what_is_easy_first_and_never_the_noise():
    random = np.random.default_rng(0)
    plain = np.tile(np.arange(10), 400)
    noise = random.integers(0, 300, 1000)
    ids = np.concatenate([plain, noise, plain]).astype(np.int32)
    batches = Curriculum(ids, 20, 4, 0, 300, easy=0.5, drop=0.05)
    plainly = Batches(ids, 20, 4, 0)
    losses = bigram(ids, 300)

    def difficulty(read: torch.Tensor) -> float:
        windows = np.lib.stride_tricks.sliding_window_view(ids, 20)
        start = int(np.flatnonzero((windows == read.numpy()).all(1))[0])
        return float(losses[start : start + 20].sum())

    def difficulties(batches: Batches, begin: int, end: int) -> list[float]:
        return [difficulty(row) for i in range(begin // 4, end // 4) for row in batches[i][0]]

    first = difficulties(batches, 0, batches.first // 4 * 4)
    everything = sorted(difficulties(plainly, 0, plainly.windows // 4 * 4))
    assert max(first) <= everything[len(everything) // 2 + 4]
    start = (batches.first + 3) // 4 * 4
    later = difficulties(batches, start, start + batches.kept // 4 * 4)
    assert max(later) > 1.5 * max(first) and max(later) <= everything[round(0.97 * len(everything))]
    assert torch.equal(batches[100][0], Curriculum(ids, 20, 4, 0, 300, easy=0.5, drop=0.05)[100][0])
    same = Curriculum(ids, 20, 4, 0, 300, easy=0, drop=0)
    assert all(torch.equal(same[i][0], plainly[i][0]) for i in (0, 50, 120))


def test_divergence_is_kl():
    taught, logits = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (
        np.exp(x.double().numpy()) / np.exp(x.double().numpy()).sum(1, keepdims=True)
        for x in (taught, logits)
    )
    assert float(divergence(taught, logits)) == pytest.approx((p * np.log(p / q)).sum() / 5, rel=1e-4)


def test_a_student_of_a_teacher_alone_comes_to_say_what_it_says():
    taught = random_model()
    t = training(256 * 40, taught, distill=1.0)
    read, _ = t.batches[0]

    def apart() -> float:
        with torch.no_grad():
            return float(divergence(taught(read).flatten(0, 1), t.model(read).flatten(0, 1)))

    before = apart()
    run(t)
    assert apart() < 0.8 * before


def test_a_teacher_is_a_file_with_the_same_tokens_or_is_refused(tmp_path):
    files = write(tmp_path, documents(20))
    length = Length("tokens", 256 * 8)
    golf(recipe(fit={"tokens": 1024, "heal": 0}), files, "28kB", length, tmp_path / "t.sprat")
    taught = recipe(teacher=str(tmp_path / "t.sprat"), fit={"tokens": 1024, "heal": 0})
    assert golf(taught, files, "28kB", length, tmp_path / "s.sprat")["runs"][0]["bytes"] <= 28000
    with pytest.raises(
        SourceError, match=r"t\.sprat cuts text into other tokens \(320 of them, the student 300\)"
    ):
        golf(
            recipe(teacher=str(tmp_path / "t.sprat"), vocabulary=300),
            files,
            "28kB",
            length,
            tmp_path / "s.sprat",
        )
    # What a fit starts from teaches as well: here the same model as a folder, which says the same.
    sprat.export(tmp_path / "t.sprat", "hf", tmp_path / "t", "float32")
    read = torch.tensor(IDS[:40].astype(np.int64))[None]
    tokenizer = words.learn(corpus.read(files, 0.2).train, 320)
    one, other = (teacher.load(tmp_path / name, tokenizer)(read) for name in ("t.sprat", "t"))
    assert torch.allclose(one, other, atol=1e-4) and one.shape == (1, 40, 320)
    folder = recipe(teacher=str(tmp_path / "t"), fit={"tokens": 1024, "heal": 0})
    assert golf(folder, files, "28kB", length, tmp_path / "f.sprat")["runs"][0]["bytes"] <= 28000
    with pytest.raises(SourceError, match=r"t cuts text into other tokens \(320 of them, the student 300\)"):
        teacher.load(tmp_path / "t", words.learn(TEXTS, 300))
    with pytest.raises(SpratError, match="there is no file or folder"):
        teacher.digest("./absent")
    with pytest.raises(SpratError, match="cannot open the teacher"):
        golf(recipe(teacher="absent.sprat"), files, "28kB", length, tmp_path / "s.sprat")


def test_a_teacher_that_is_trained_first_takes_its_share_and_resumes(tmp_path, monkeypatch):
    files = write(tmp_path, documents(20))
    own = recipe(teach={"width": 48}, teach_share=0.25, fit={"tokens": 1024, "heal": 0})
    length = Length("tokens", 256 * 40)
    (row,) = golf(own, files, "28kB", length, tmp_path / "t.sprat")["runs"]
    assert row["teacher"]["tokens"] == 256 * 10 and row["tokens"] == 256 * 30
    assert row["teacher"]["parameters"] > row["parameters"]
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    (tmp_path / "again").mkdir()
    for share in (0.5, 0.9):

        def die(point, _, share=share):
            if point.share > share and (share == 0.9 or point.tokens > 256 * 12):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            golf(own, files, "28kB", length, tmp_path / "again" / "t.sprat", resume=True, watch=die)
    (again,) = golf(own, files, "28kB", length, tmp_path / "again" / "t.sprat", resume=True)["runs"]
    assert again["sha256"] == row["sha256"] and not list(tmp_path.rglob("*.checkpoint"))
    with pytest.raises(RecipeError, match=r"\[teach\] vocabulary = 300: it is the student's"):
        recipe(teach={"vocabulary": 300})
