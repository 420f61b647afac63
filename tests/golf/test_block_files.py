"""Models of every block as files: within the cap, through the engine that serves them, read back exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import documents, recipe
from test_blocks import BLOCKS

import sprat
from sprat.cli.main import main
from sprat.errors import FormatError, RequestError, SpratError, UnsupportedError
from sprat.golf import finish, int8, words
from sprat.golf.batches import Batches
from sprat.golf.blocks import bitlinear
from sprat.golf.loop import run
from sprat.golf.model import Decoder, Past
from sprat.golf.pretrained import GolfConfig, GolfForCausalLM, config
from sprat.golf.schedule import Length
from sprat.golf.score import score_file, score_model
from sprat.golf.training import Training
from sprat.methods import kept
from sprat.methods.metric import Metric
from sprat.recipe import Recipe
from sprat.run.architecture import architecture
from sprat.run.engine import open_engine
from sprat.run.native import NativeEngine
from sprat.sense.measure import measure
from sprat.sense.statistics import SKIP, GroupStatistics
from sprat.sense.walk import Walk
from sprat.source.maps import groups

TEXTS = documents()
TOKENIZER = words.learn(TEXTS, 320)
IDS = words.stream(TOKENIZER, TEXTS)
NATIVE = ("all", "middle", "ngrams", "ternary", "binary")


def trained(block: str, tokens: int = 256 * 12, **values: object) -> Training:
    r = recipe(**{**BLOCKS[block], "fit": {"tokens": 1024, "heal": 0}, **values})
    out = Training(r, 320, Batches(IDS, r.context, r.batch, 0), Length("tokens", tokens), 0)
    run(out)
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Block -> (the trained model, its recipe, its file), made when first asked for."""
    folder, made = tmp_path_factory.mktemp("blocks"), {}

    def make(block: str):
        if block not in made:
            done = trained(block)
            path = folder / f"{block}.sprat"
            finish.into_cap(done.result(), done.recipe, TOKENIZER, 26000, path, TEXTS, 0)
            made[block] = done.result(), done.recipe, path
        return made[block]

    return make


@pytest.mark.parametrize("block", BLOCKS)
def test_a_file_holds_the_cap_and_scores_as_its_model(files, block):
    model, r, path = files(block)
    assert path.stat().st_size <= 26000
    found = score_file(path, TEXTS[:3], threads=1)
    assert found.engine == ("native" if block in NATIVE else "torch")
    before = score_model(model, r.context, TOKENIZER, TEXTS[:3])
    assert abs(found.bits_per_byte - before.bits_per_byte) < 0.05


@pytest.mark.parametrize("block", ["all", "middle", "ngrams", "delta", "experts"])
def test_a_text_under_way_goes_on_and_back(files, block):
    with sprat.open(files(block)[2]) as artifact:
        engine = open_engine(artifact, threads=1, kind="torch")
    ids = IDS[1:40].tolist()
    whole, session = engine.all_logits(ids), engine.session()
    parts = engine.step_all([session], [ids[:17]])[0]
    assert np.allclose(parts, whole[:17], atol=1e-4)
    assert np.allclose(engine.step([session], [ids[17:20]])[0], whole[19], atol=1e-4)
    session.rewind(10)
    assert np.allclose(engine.step_all([session], [ids[10:]])[0], whole[10:], atol=1e-4)


def test_a_text_under_way_is_not_read_again_and_a_memory_stays_of_one_size():
    model = Decoder(recipe(memory="delta", memory_every=2), 320).eval()
    ids, past, seen = torch.from_numpy(IDS[None, :60]).long(), Past(1), []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    with torch.inference_mode():
        whole, parts, sizes = model.model(ids), [], []
        for end in (1, 2, 5, 33, 60):
            parts.append(model.model(ids[:, :end], past))
            sizes.append([sum(t.numel() for t in past.kept[use].values()) for use in (0, 1)])
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
    assert seen == [60, 1, 1, 3, 28, 27]
    memory, attention = zip(*sizes, strict=True)
    assert memory[2:] == memory[2:3] * 3 and list(attention) == [32 * n for n in (1, 2, 5, 33, 60)]


@pytest.mark.parametrize("block", ["all", "middle"])
def test_the_native_engine_shares_layers_as_torch_does(files, block):
    with sprat.open(files(block)[2]) as artifact:
        native = NativeEngine(artifact, threads=1, activations="float")
        reference = open_engine(artifact, threads=1, kind="torch")
        stored = {name for entry in artifact.entries().values() for name in entry.maps}
    ids = IDS[:60].tolist()
    assert np.allclose(native.all_logits(ids), reference.all_logits(ids), atol=2e-3)
    owners = native.architecture.owners
    assert {int(name.split(".")[2]) for name in stored if "proj" in name} == set(owners)
    # Each map once in memory, and read once for each use.
    maps = native.bytes_per_token - native.resident["vocabulary"]
    assert native.resident["layout"] < maps * (len(set(owners)) + 0.5) / len(owners)
    assert native.cache_bytes_per_token == native.architecture.cache_bytes("float32")


@pytest.mark.parametrize("order", [2, 3])
def test_the_native_engine_looks_back_as_torch_does(files, tmp_path, order):
    model = Decoder(
        r := recipe(**BLOCKS["ngrams"] | {"ngram_order": order, "fit": {"tokens": 1024, "heal": 0}}), 320
    )
    for p in model.parameters():
        torch.nn.init.normal_(
            p, 0.5 if p.ndim == 1 else 0.0, 0.2, generator=torch.Generator().manual_seed(p.numel())
        )
    finish.into_cap(model.eval(), r, TOKENIZER, 40000, tmp_path / "n.sprat", TEXTS, 0)
    with sprat.open(tmp_path / "n.sprat") as artifact:
        native = NativeEngine(artifact, threads=1, activations="float")
        reference = open_engine(artifact, threads=1, kind="torch")
    ids, other = IDS[:60].tolist(), IDS[100:160].tolist()
    expected = reference.all_logits(ids)
    assert np.allclose(native.all_logits(ids), expected, atol=2e-3)
    one, two = native.session(), native.session()
    native.step([one, two], [ids[:20], other[:31]])
    native.step([two, one], [other[31:], ids[20:40]])
    one.rewind(19)
    assert np.allclose(native.step_all([one], [ids[19:]])[0], expected[19:], atol=2e-3)
    assert np.allclose(
        native.step([two], [ids[:1]])[0], reference.all_logits([*other, ids[0]])[-1], atol=2e-3
    )
    assert native.resident["vocabulary"] > native.bytes_per_token - native.resident["layout"]


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_trained_integers_are_the_files_integers(files, kind):
    model, _, path = files(kind)
    expected = bitlinear.stored(model)
    with sprat.open(path) as artifact:
        assert artifact.config["model_type"] == "qwen3"
        entries = [e for e in artifact.entries().values() if "proj" in e.maps[0]]
    assert len(entries) == 8
    for entry in entries:
        w = torch.cat([expected[name] for name in entry.maps]).numpy()
        assert np.array_equal(entry.tensor.q, np.sign(w).astype(int))
        assert np.allclose(entry.tensor.dense(), w, rtol=0.02)
        assert set(np.unique(entry.tensor.q)) == ({-1, 1} if kind == "binary" else {-1, 0, 1})


def test_what_was_not_trained_as_integers_is_not_kept():
    w = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
    eye, ones, tables = torch.eye(20), torch.ones(100), None
    with pytest.raises(SpratError, match="row 0 holds more than one magnitude"):
        kept.keep(w, Metric(eye, ones), 0.0, Recipe(method="kept"), tables)
    w = w.sign()
    w[3] = 0
    assert np.array_equal(kept.keep(w, Metric(eye, ones), 0.0, Recipe(method="kept"), tables).q, w.numpy())


def test_the_statistics_of_a_shared_map_are_those_of_all_its_uses(tmp_path):
    r = recipe(**BLOCKS["middle"])
    model = GolfForCausalLM(GolfConfig(**config(r, 320, 0))).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.5 if p.ndim == 1 else 0.0, 0.2)
    ids = torch.from_numpy(IDS[: 6 * 32].astype(np.int64)).view(6, 32)
    cache: dict[str, object] = {}

    class Cache:
        def __contains__(self, name: str) -> bool:
            return name in cache

        def put(self, name: str, value: object) -> None:
            cache[name] = value

    found = groups(model)
    assert [g.uses for g in found if g.layer == 1] == [(1, 2)] * 4
    inputs: list[torch.Tensor] = []
    up = model.model.layers[1].mlp.up_proj
    hook = up.register_forward_pre_hook(lambda _, args: inputs.append(args[0][:, SKIP:].flatten(0, 1)))
    with torch.no_grad():
        model(ids[:4])
    hook.remove()
    x = torch.cat(inputs)
    measure(Walk(model, ids), found, Cache(), held_out=2)  # type: ignore[arg-type]
    s = cache["layer/1"]["model.layers.1.mlp.gate_proj.weight"]  # type: ignore[index]
    assert isinstance(s, GroupStatistics) and len(inputs) == 2
    assert torch.allclose(s.h, x.T @ x / len(x), atol=1e-4)
    assert set(cache) == {"layer/0", "layer/1", "layer/3", "head"}


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_resume_to_the_same_bits(block):
    torch.set_num_threads(1)
    whole, broken = trained(block, 256 * 6, ema=0.9), None
    broken, resumed = (
        Training(whole.recipe, 320, whole.batches, Length("tokens", 256 * 6), 0) for _ in range(2)
    )
    for _ in range(3):
        broken.advance()
    resumed.restore(broken.state())
    run(resumed)
    for a, b in zip(whole.result().parameters(), resumed.result().parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("block", ["middle", "ngrams", "delta", "experts"])
def test_the_naive_artifact_takes_blocks_of_real_weights(block):
    r = recipe(**BLOCKS[block], finish="int8-zlib")
    model = Decoder(r, 320, 3).eval()
    again, read, _ = int8.unpack(int8.pack(model, r, TOKENIZER))
    ids = torch.from_numpy(IDS[None, :40].astype(np.int64))
    with torch.no_grad():
        assert read == r and torch.allclose(model(ids), again(ids), atol=0.05)


def test_the_engine_says_what_it_does_not_serve(files):
    with sprat.open(files("delta")[2]) as artifact:
        with pytest.raises(UnsupportedError, match="does not serve a golf's memory"):
            NativeEngine(artifact)
        told = dict(artifact.config)
    shared = config(recipe(**BLOCKS["middle"]), 320, 0)
    assert architecture(shared).owners == (0, 1, 1, 3)
    for wrong in ([0, 1, 1], [0, 1, 2, 4], [0, 1, 1, 2], "0113"):
        with pytest.raises(FormatError, match="layer_owners"):
            architecture({**shared, "layer_owners": wrong})
    for wrong in (None, 3, {"memory": "lstm"}):
        with pytest.raises((FormatError, UnsupportedError)):
            architecture({**told, "blocks": wrong})
    with pytest.raises(RequestError, match="padding goes behind"):
        GolfForCausalLM(GolfConfig(**told))(torch.zeros(1, 4, dtype=int), torch.tensor([[0, 1, 1, 1]]))


def test_the_command_line_opens_what_runs_through_torch(files, capsys):
    path = str(files("experts")[2])
    assert main(["inspect", path]) == 0
    assert main(["run", path, "The cat", "--max-tokens", "8", "--seed", "1"]) == 0
    assert capsys.readouterr().out
