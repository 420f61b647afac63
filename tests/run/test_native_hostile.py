"""Configs and tensors that lie: refused by name, never a crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import CONFIGS, write_model

import sprat
from sprat.coding.tensors import Dense, Entry
from sprat.errors import FormatError, SpratError
from sprat.run.architecture import architecture
from sprat.run.model import to_torch
from sprat.run.native import NativeEngine


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return sprat.open(write_model("llama", tmp_path_factory.mktemp("hostile") / "llama.sprat"))


class Altered:
    """An artifact with something changed."""

    def __init__(self, artifact, config=None, change=None, drop=()):
        self.config = artifact.config | (config or {})
        self.names = tuple(name for name in artifact.names if name not in drop)
        self.artifact, self.change = artifact, change or (lambda name, entry: entry)

    def release_pages(self):
        pass

    def entry(self, name, threads=1):
        return self.change(name, self.artifact.entry(name))


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"model_type": "gpt2"}, SpratError, "does not serve 'gpt2': one of llama, mistral"),
        ({"model_type": "lama"}, SpratError, "did you mean 'llama'"),
        ({"model_type": None}, SpratError, "does not serve None"),
        ({"num_hidden_layers": 0}, FormatError, "'num_hidden_layers' must be a whole number from 1"),
        ({"num_hidden_layers": 2.0}, FormatError, "'num_hidden_layers'"),
        ({"num_hidden_layers": True}, FormatError, "'num_hidden_layers'"),
        ({"num_hidden_layers": 10**12}, FormatError, "'num_hidden_layers'"),
        ({"num_attention_heads": 3}, FormatError, "3 attention heads are no multiple of 2"),
        ({"num_key_value_heads": 5}, FormatError, "'num_key_value_heads'"),
        ({"head_dim": 7}, FormatError, "'head_dim' must be even"),
        ({"head_dim": 12}, FormatError, "q_proj.weight' is"),
        ({"hidden_size": -1}, FormatError, "'hidden_size'"),
        ({"vocab_size": 132}, FormatError, r"is \(131, 40\), the config asks for \(132, 40\)"),
        ({"rms_norm_eps": "small"}, FormatError, "'rms_norm_eps'"),
        ({"rms_norm_eps": float("nan")}, FormatError, "'rms_norm_eps'"),
        ({"hidden_act": "relu"}, SpratError, "activation 'relu'"),
        ({"tie_word_embeddings": "no"}, FormatError, "'tie_word_embeddings'"),
        ({"tie_word_embeddings": True}, FormatError, "'lm_head.weight' is no part"),
        ({"max_position_embeddings": None}, FormatError, "'max_position_embeddings'"),
        ({"rope_parameters": 5}, FormatError, "'rope_parameters' must be an object"),
        ({"rope_parameters": {"rope_theta": 0}}, FormatError, "'rope_theta'"),
        ({"rope_parameters": {"rope_theta": "10000"}}, FormatError, "'rope_theta'"),
        (
            {"rope_parameters": {"rope_theta": 10.0, "rope_type": "dynamic"}},
            SpratError,
            "rope scaling 'dynamic'",
        ),
        ({"rope_parameters": {"rope_theta": 10.0, "rope_type": "linear"}}, FormatError, "rope's 'factor'"),
        ({"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}}, SpratError, "in part"),
        ({"attention_bias": True}, FormatError, "lacks 12 tensors of its model, .*bias' first"),
    ],
)
def test_configs_that_lie(config, kind, message, llama):
    with pytest.raises(kind, match=message):
        NativeEngine(Altered(llama, config), threads=1)


def test_gemmas_settings_are_checked():
    good = CONFIGS["gemma3"].to_dict()
    architecture(good)
    for change, message in (
        ({"layer_types": ["full_attention"]}, "'layer_types' must name 3 layers"),
        ({"layer_types": ["full", "full", "full"]}, "'layer_types'"),
        ({"sliding_window": 0}, "'sliding_window'"),
        ({"query_pre_attn_scalar": 0}, "'query_pre_attn_scalar'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention"),
    ):
        with pytest.raises(SpratError, match=message):
            architecture(good | change)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_config_does_worse_than_an_error(data):
    config = data.draw(st.sampled_from(list(CONFIGS.values()))).to_dict()
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3)):
        config[key] = data.draw(junk)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope and data.draw(st.booleans()):
        config["rope_parameters"] = rope | {data.draw(st.sampled_from(sorted(rope))): data.draw(junk)}
    try:
        made = architecture(config)
    except SpratError:
        return
    assert len(made.windows) == len(made.rope) == made.shape["layers"] <= 4096


def test_tensors_that_do_not_fit(llama):
    def renamed(name, entry):
        return Entry(tuple(m.replace("norm", "form") for m in entry.maps), entry.rows, entry.tensor)

    def doubled(name, entry):
        maps = tuple(m.replace("layers.1.mlp.down", "layers.0.mlp.down") for m in entry.maps)
        return Entry(maps, entry.rows, entry.tensor)

    def transposed(name, entry):
        return Entry(entry.maps, entry.rows, entry.tensor, "o_proj" in name)

    def not_finite(name, entry):
        if "o_proj" not in name:
            return entry
        return Entry(entry.maps, entry.rows, Dense(np.full((40, 40), np.nan, np.float32), "f32"))

    for change, message in (
        (renamed, "no part of a llama"),
        (doubled, "'model.layers.0.mlp.down_proj.weight' is there twice"),
        (transposed, "o_proj"),
        (not_finite, "not finite"),
    ):
        with pytest.raises(FormatError, match=message):
            NativeEngine(Altered(llama, change=change), threads=1)
    with pytest.raises(FormatError, match=r"lacks 1 tensors of its model, 'model\.norm\.weight' first"):
        NativeEngine(Altered(llama, drop=("model.norm.weight",)), threads=1)


def test_dense_matrices_are_served(llama):
    """A map that was not worth a lattice."""

    def dense(name, entry):
        if "o_proj" not in name and "lm_head" not in name:
            return entry
        return Entry(entry.maps, entry.rows, Dense(entry.tensor.dense(), "f32"))

    ids = np.arange(20)
    engine = NativeEngine(Altered(llama, change=dense), threads=1, activations="float")
    with torch.no_grad():
        expected = to_torch(llama)(torch.tensor(ids)[None]).logits[0].numpy()
    assert np.abs(engine.all_logits(ids) - expected).max() < 1e-3 * expected.std()
