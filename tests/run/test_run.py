"""A file through torch, generation, and export."""

import json

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

import sprat
from sprat.coding.tensors import expand
from sprat.errors import FormatError, RequestError, SourceError, SpratError
from sprat.run import export as exporting
from sprat.run.generate import Generation, generate
from sprat.run.model import to_torch
from sprat.run.sampling import Sampler, Sampling
from sprat.run.template import render
from sprat.run.tokenizer import Pieces, from_files, open_tokenizer
from sprat.run.torch_engine import TorchEngine
from toy_engine import ToyEngine

IDS = torch.tensor([[5, 60, 130, 290, 7, 9, 300, 41]])


def test_the_model_is_the_original_with_the_stored_weights(tiny):
    artifact = sprat.open(tiny.file)
    original = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    original.load_state_dict(
        {name: torch.from_numpy(array) for name, array in expand(artifact.entries()).items()}, strict=False
    )
    with torch.no_grad():
        assert torch.equal(to_torch(artifact)(IDS).logits, original.eval()(IDS).logits)


def test_an_unknown_dtype_is_refused_with_the_nearest(tiny):
    with pytest.raises(SpratError, match=r"unknown dtype 'float23' \(did you mean 'float32'\?\)"):
        to_torch(sprat.open(tiny.file), "float23")


class Altered:
    """An artifact with something changed."""

    def __init__(self, artifact, config=None, drop=(), rename=None):
        self.config = artifact.config | (config or {})
        self.names = tuple(name for name in artifact.names if name not in drop)
        self.artifact, self.rename = artifact, rename or {}

    def entry(self, name):
        entry = self.artifact.entry(name)
        return type(entry)(tuple(self.rename.get(m, m) for m in entry.maps), entry.rows, entry.tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"model_type": None}}, "no model_type"),
        ({"config": {"model_type": "lama"}}, "'lama' cannot be built"),
        (
            {"config": {"vocab_size": 321}},
            r"'model.embed_tokens.weight' is \(320, 32\), the config asks for \(321",
        ),
        ({"drop": ["model.norm.weight"]}, "lacks 1 tensors of its model, 'model.norm.weight' first"),
        (
            {"rename": {"model.norm.weight": "model.norms.weight"}},
            "no part of a llama.*did you mean 'model.norm",
        ),
    ],
)
def test_a_file_that_contradicts_its_config_is_refused(tiny, change, message):
    with pytest.raises(FormatError, match=message):
        to_torch(Altered(sprat.open(tiny.file), **change))


def test_greedy_text_is_what_transformers_writes(tiny, tmp_path):
    artifact = sprat.open(tiny.file)
    folder = exporting.export(artifact, "hf", tmp_path / "hf", "float32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    engine = TorchEngine(artifact)
    found = "".join(generate(artifact, "the cat", max_tokens=20, chat=False, engine=engine))
    assert found == tokenizer.decode(expected, skip_special_tokens=True)


def test_sampling_is_seeded(tiny):
    artifact = sprat.open(tiny.file)

    def write(seed):
        sampling = Sampling(temperature=1.0, top_p=0.9, seed=seed)
        return "".join(generate(artifact, "the cat", max_tokens=12, sampling=sampling, chat=True))

    assert write(1) == write(1) != write(2)


def going(engine, ids=(5, 6), max_tokens=10, **options):
    session = engine.session()
    return Generation(engine, session, ids, Sampler(Sampling()), frozenset({0}), max_tokens, **options)


def test_an_end_of_text_token_ends_it_and_is_not_shown(tiny):
    made = going(ToyEngine(script=[70, 71, 0, 72]))
    assert list(made) == made.tokens == [70, 71]
    assert (made.finish, made.read, made.steps, made.session.ids) == ("stop", 2, 2, [5, 6, 70, 71])
    assert made.tokens_per_second > 0
    assert open_tokenizer(sprat.open(tiny.file)).eos_ids == {0}


def test_why_a_generation_ended():
    cut = going(ToyEngine(script=[70] * 9), max_tokens=3)
    assert (list(cut), cut.finish) == ([70] * 3, "length")
    full = going(ToyEngine(context=5, script=[70] * 9))
    # The last token is written although the session has no room to read it.
    assert (list(full), full.finish, full.session.length) == ([70] * 4, "context", 5)
    first = going(ToyEngine(script=[0]))
    assert (list(first), first.finish, first.tokens_per_second) == ([], "stop", 0.0)


def test_a_generation_stops_when_it_is_told_to():
    engine, asked = ToyEngine(context=2000, script=[70] * 9), iter([False, False, True])
    made = going(engine, stopped=lambda: next(asked))
    assert (list(made), made.finish) == ([70, 70], "stopped")
    early = going(engine, ids=[7] * 1200, stopped=lambda: engine.tokens > 500)
    engine.tokens = 0
    assert (list(early), early.finish, early.session.length) == ([], "stopped", 512)


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(RequestError, match="the text has 5 tokens, and the context holds 5"):
        going(ToyEngine(context=5), ids=[1] * 5)


def test_generate_closes_its_session(tiny):
    engine = ToyEngine(never=[0])
    pieces = generate(sprat.open(tiny.file), "the cat", engine=engine)
    next(pieces)
    assert engine.open == 1
    pieces.close()
    assert engine.open == 0


def test_bytes_that_never_become_a_character_are_let_go(tiny):
    tokenizer = open_tokenizer(sprat.open(tiny.file))
    broken = tokenizer.encode("🐟", special=False)[:1]
    pieces, found = Pieces(tokenizer), ""
    for _ in range(200):
        found += pieces.push(broken[0])
        assert len(pieces._window) <= Pieces.FRONT + Pieces.PATIENCE + 1
    found += pieces.rest()
    assert set(found) == {"�"}


def test_tokens_without_a_text_are_not_read_again_with_every_other(tiny):
    """A model (or a logit_bias) that writes them one after the other must not take the square of their time."""
    tokenizer = open_tokenizer(sprat.open(tiny.file))
    pieces = Pieces(tokenizer, tokenizer.encode("the"))
    for _ in range(200):
        assert pieces.push(1) == ""
        assert len(pieces._window) <= Pieces.FRONT + Pieces.PATIENCE
    ids = tokenizer.encode(" 🐟 sat", special=False)
    assert "".join(map(pieces.push, ids)) + pieces.rest() == " 🐟 sat"


def test_tokens_have_names_and_bytes(tiny):
    tokenizer = open_tokenizer(sprat.open(tiny.file))
    ids = tokenizer.encode("the 🐟 sat café", special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == "the 🐟 sat café".encode()
    assert tokenizer.token_text(0) == "<eos>"
    assert [tokenizer.token_text(i) for i in tokenizer.encode("the cat")] == ["the", " cat"]


def test_characters_come_whole(tiny):
    tokenizer = open_tokenizer(sprat.open(tiny.file))
    ids = tokenizer.encode("the 🐟 sat café", special=False)
    pieces = list(tokenizer.stream([], ids))
    assert "".join(pieces) == "the 🐟 sat café"
    assert not any("�" in piece for piece in pieces)
    assert "".join(tokenizer.stream([], ids[:-1])) == "the 🐟 sat caf�"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max tokens must be at least 1"),
        ({"prompt": "", "chat": False}, "the prompt is empty"),
        ({"context": 4096}, "context must .* 256"),
        ({"prompt": "the cat " * 300}, "tokens, and the context holds 256, the answer included"),
    ],
)
def test_settings_outside_their_range_are_refused(tiny, options, message):
    with pytest.raises(SpratError, match=message):
        list(generate(sprat.open(tiny.file), **({"prompt": "the"} | options)))


def test_chat_templates_render_as_transformers_does_and_run_sandboxed(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    messages = [{"role": "user", "content": "the cat"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert open_tokenizer(sprat.open(tiny.file)).chat(messages) == expected
    with pytest.raises(SourceError, match="chat template refused"):
        render("{{ messages.__class__.__mro__[1].__subclasses__() }}", messages, {})
    with pytest.raises(SourceError, match="no assistants"):
        render("{{ raise_exception('no assistants') }}", messages, {})
    assert (
        render("{{ eos_token }}\n{% if add_generation_prompt %}\nx{% endif %}", messages, {"eos_token": "E"})
        == "E\nx"
    )


SAID = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat\n"}]


@pytest.mark.parametrize(
    "template",
    [
        # SmolLM3's and others' mark of an answer, with what jinja does to lines around it.
        "{% set x = 1 %}{% for m in messages %}\na{% generation %}{% set x = 2 %}\n{{ m.content }}{{ x }}"
        "{% endgeneration %}\nb{{ x }}\n{% endfor %}{%- generation -%} q {%- endgeneration -%}",
        "{{ messages | tojson }} {{ messages | tojson(indent=2, sort_keys=true) }}",
        "{{ '<é>' | tojson }} {{ '<é>' | tojson(ensure_ascii=true) }}",
        "{% set n = namespace(i=1) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
        "{{ dict(a=1).a }}{{ dict.fromkeys('ab', 0) }}{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
    ],
)
def test_templates_may_use_what_transformers_gives_them(template):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    expected = _compile_jinja_template(template).render(messages=SAID, add_generation_prompt=True)
    assert render(template, SAID, {}) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ strftime_now(5) }}",
        "{{ 'x' * 10 ** 14 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'x' %}",
        "{{ messages | tojson(default=cycler) }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ ''|attr('__class__') }}{{ cycler.__init__.__globals__ }}",
        "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1).x.y }}",
    ],
)
def test_whatever_a_template_does_wrong_is_told_as_its_own(template):
    with pytest.raises(SourceError, match="chat template refused"):
        render(template, SAID, {})


def test_what_is_no_text_is_refused(tiny):
    tokenizer = open_tokenizer(sprat.open(tiny.file))
    with pytest.raises(RequestError, match=r"not UTF-8: it holds '\\udcff'"):
        tokenizer.chat([{"role": "user", "content": "a\udcff"}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": 5}, "the chat template is no text"),
        ({"chat_template": [{"name": "default", "template": {}}]}, "the chat template is no text"),
        ({"chat_template": [5, {"name": "default"}, {"name": "other", "template": "x"}]}, None),
    ],
)
def test_odd_chat_templates_of_a_file_are_named_or_left_out(tiny, settings, message):
    files = {
        "tokenizer.json": (tiny.folder / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    if message is None:
        assert from_files(files, {"eos_token_id": [[1], 2, True, None, "x"]}).eos_ids == {2}
        assert from_files(files, {"eos_token_id": {"a": 1}}).chat_template is None
        return
    with pytest.raises(FormatError, match=message):
        from_files(files, {})
    with pytest.raises(FormatError, match="no UTF-8"):
        from_files(files | {"chat_template.jinja": b"\xff"}, {})


def test_a_broken_tokenizer_is_named(tiny):
    with pytest.raises(FormatError, match=r"no tokenizer\.json"):
        from_files({}, {})
    with pytest.raises(FormatError, match="section 'tokenizer'"):
        from_files({"tokenizer.json": b"{]"}, {})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_opens_unaided_with_the_same_logits(tiny, tmp_path, dtype):
    folder = sprat.export(tiny.file, "hf", tmp_path / "out", dtype)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == getattr(torch, dtype)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, to_torch(sprat.open(tiny.file), dtype)(IDS).logits)
    assert AutoTokenizer.from_pretrained(folder)("the cat").input_ids


def test_export_in_several_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD_BYTES", 40_000)
    folder = exporting.export(tiny.file, "hf", tmp_path / "out", "float32")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(folder.glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, to_torch(sprat.open(tiny.file))(IDS).logits)


def test_export_refuses_and_leaves_nothing_half(tiny, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(SpratError, match="not an empty folder"):
        sprat.export(tiny.file, "hf", tmp_path / "full")
    with pytest.raises(SpratError, match=r"unknown form 'hff' \(did you mean 'hf'\?\)"):
        sprat.export(tiny.file, "hff", tmp_path / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    def full_too(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for name, failing in (("safetensors.torch.save_file", full_too), (f"{exporting.__name__}._save", full)):
        monkeypatch.setattr(name, failing)
        with pytest.raises(SpratError, match="No space left"):
            sprat.export(tiny.file, "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
