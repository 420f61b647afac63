"""Counts by shape against transformers' own models, built without memory on the meta device."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

import families
from sprat.anatomy.config import FAMILIES, from_config, read
from sprat.anatomy.shape import from_numbers
from sprat.errors import SourceError
from sprat.run.architecture import architecture

_QWEN = {"num_key_value_heads": 2, "num_attention_heads": 14, "hidden_size": 896, "intermediate_size": 4864}
#: Sizes of published models.
PUBLISHED = {
    "Llama 3.1 8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "Mistral 7B": MistralConfig(),
    "Qwen2.5 0.5B": Qwen2Config(vocab_size=151936, num_hidden_layers=24, tie_word_embeddings=True, **_QWEN),
    "Qwen3": Qwen3Config(vocab_size=151936, num_hidden_layers=3, head_dim=128, **_QWEN),
    "Phi 3": Phi3Config(num_hidden_layers=2),
    "Gemma": GemmaConfig(num_hidden_layers=2),
    "Gemma 2": Gemma2Config(num_hidden_layers=3),
    "Gemma 3 270M": Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512,
    ),
    "GPT-2": GPT2Config(),
    "GPT-2, own inner": GPT2Config(n_inner=1000, n_layer=2),
    "Pythia": GPTNeoXConfig(num_hidden_layers=2),
    "Mixtral 8x7B": MixtralConfig(),
    "OLMoE": OlmoeConfig(intermediate_size=1024),
    "Qwen3 30B-A3B": Qwen3MoeConfig(
        vocab_size=151936, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
    ),
}  # fmt: skip
CONFIGS = PUBLISHED | {f"tiny {name}": config for name, config in families.CONFIGS.items()}


def parts_of(model: torch.nn.Module) -> dict[str, int]:
    """Parameters by part, told from their names and dimensions alone."""
    out: dict[str, int] = {}
    for name, parameter in model.named_parameters():  # a tied one comes once
        if parameter.ndim == 1:
            part = "norms and biases"
        elif "mlp.gate." in name:
            part = "routers"
        elif "attn" in name or "attention" in name:
            part = "attention"
        elif "mlp" in name:
            part = "feed-forward"
        elif "wpe" in name:
            part = "positions"
        else:
            part = "head" if "lm_head" in name or "embed_out" in name else "embedding"
        out[part] = out.get(part, 0) + parameter.numel()
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_is_counted_as_transformers_has_it(name, tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    model.config.save_pretrained(tmp_path)  # what lies on disk leaves defaults out
    shape = read(tmp_path)
    assert shape.parts == parts_of(model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert from_config(model.config.to_dict()) == shape


def test_every_family_is_tested():
    assert {config.model_type for config in CONFIGS.values()} == set(FAMILIES)


def test_numbers_give_a_plain_llama():
    config = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=700, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    shape = from_numbers(256, 3, 700, 1000, heads=4, kv_heads=2, tied=True)
    known = from_config(config.to_dict())
    assert (shape.parts, shape.flops(77), shape.cache_bytes(77)) == (
        known.parts,
        known.flops(77),
        known.cache_bytes(77),
    )
    assert from_numbers(256, 3, 700, 1000, heads=4, gated=False).parts["feed-forward"] == 3 * 2 * 256 * 700


@pytest.mark.parametrize("name", ["tiny llama", "tiny mistral", "tiny qwen3", "tiny gemma3"])
def test_flops_are_those_of_the_products_that_a_pass_makes(name):
    """Counted by torch on a real pass over the last token behind a cache; eager attention makes plain products."""
    from torch.utils.flop_counter import FlopCounterMode

    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    context = 4  # within the sliding window of 5, which a cache keeps one token less of
    ids = torch.zeros(1, context, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
    shape = from_config(config.to_dict())
    assert counter.get_total_flops() == pytest.approx(shape.flops(context), rel=0.02)


def test_one_token_uses_the_experts_that_are_chosen_for_it():
    """As the models' makers count: 12.9 of 46.7, 1.3 of 6.9 and 3.3 of 30.5 billion."""
    for name, active, total in (
        ("Mixtral 8x7B", 12.9, 46.7),
        ("OLMoE", 1.3, 6.9),
        ("Qwen3 30B-A3B", 3.3, 30.5),
    ):
        shape = from_config(CONFIGS[name].to_dict())
        assert (shape.active / 1e9, shape.parameters / 1e9) == pytest.approx((active, total), abs=0.06), name
        lookup = 0 if shape.tied else shape.vocabulary * shape.width
        small = shape.parts["norms and biases"]
        assert shape.flops(0) == 2 * (shape.active - lookup - small)
    dense = from_config(CONFIGS["Llama 3.1 8B"].to_dict())
    assert dense.active == dense.parameters


def test_a_window_bounds_the_cache():
    config = CONFIGS["Gemma 3 270M"].to_dict()
    shape = from_config(config)
    sliding = sum(kind == "sliding_attention" for kind in config["layer_types"])
    full = 18 - sliding
    assert (sliding, full) == (15, 3)
    assert shape.cache_bytes(4096) == 2 * 256 * 2 * (sliding * 512 + full * 4096)
    assert shape.cache_bytes(100) == 2 * 256 * 2 * 18 * 100
    without = {k: v for k, v in config.items() if k != "layer_types"}
    assert from_config(without).windows == shape.windows
    assert architecture(config).windows == shape.windows


def test_a_text_model_inside_several_modalities_is_found():
    inner = CONFIGS["Gemma 3 270M"].to_dict()
    assert from_config({"model_type": "gemma3", "text_config": inner}) == from_config(inner)


def test_a_sprat_file_knows_its_shape(tiny):
    assert read(tiny.file) == read(tiny.folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "the anatomy of None is not known"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "llama", "num_local_experts": 8}, "known mixtures are mixtral, olmoe, qwen3_moe"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "not all layers of this 'qwen3_moe' have experts"),
        ({"model_type": "llama", "hidden_size": "wide"}, "'hidden_size' must be a whole number"),
        ({"model_type": "llama", "hidden_size": 0}, "'hidden_size' must be"),
        ({"model_type": "llama", "hidden_size": True}, "'hidden_size' must be"),
        ({"model_type": "llama", "hidden_size": 8}, "'num_hidden_layers' must be"),
        ({"model_type": ["llama"]}, "is not known"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_counted_is_refused(config, message):
    with pytest.raises(SourceError, match=message):
        from_config(config)


def test_files_that_are_no_config_are_refused(tmp_path):
    for content, message in ((b"\xff{", "no JSON"), (b"[1]", "holds no object")):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(SourceError, match=message):
            read(tmp_path)
    with pytest.raises(SourceError, match="an anatomy needs"):
        read(tmp_path / "nothing")


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(SourceError, match="3 heads are no multiple of 2"):
        from_numbers(64, 1, 64, 64, heads=3, kv_heads=2)


def test_it_runs_without_torch(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["GPT-2"].to_dict()))
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from sprat.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "anatomy", str(tmp_path), "--claim", "124M"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "124,439,808" in done.stdout
