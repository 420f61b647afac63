"""A golf's model as transformers sees it: a plain Qwen3, or, with any block, this module's own class.

`config` says which. A model of our own class is read, fitted, scored and talked to like any other, through torch; the
native engine serves those too whose blocks are shared layers and n-grams (run/architecture.py).
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from sprat.equations.maps import Embedding, Head
from sprat.errors import RequestError
from sprat.golf import MODEL_TYPE
from sprat.golf.blocks.sharing import owners
from sprat.golf.model import EPS, THETA, Past, Trunk
from sprat.golf.recipe import Recipe

#: Keys of a recipe that a model depends on and that a config.json of Qwen3 does not say.
BLOCKS = (
    "layers", "activation", "shared", "loops", "ngrams", "ngram_width", "ngram_order", "memory", "memory_every",
    "experts", "chosen", "balance", "equation",
)  # fmt: skip


def config(recipe: Recipe, vocabulary: int, mark: int) -> dict[str, Any]:
    """The config.json of a model of this shape. Ternary and binary weights are weights of a plain model when stored."""
    uses = owners(recipe.shared, recipe.layers, recipe.loops)
    standard = {f.name: f.default for f in fields(Recipe)} | {"layers": len(uses)}
    blocks = {name: value for name in BLOCKS if (value := getattr(recipe, name)) != standard[name]}
    own: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    if blocks:
        own = {"architectures": [GolfForCausalLM.__name__], "model_type": MODEL_TYPE, "blocks": blocks}
        own |= {"layer_owners": list(uses)} if recipe.shared != "none" else {}
    return {
        **own,
        "vocab_size": vocabulary,
        "hidden_size": recipe.width,
        "intermediate_size": recipe.inner,
        "num_hidden_layers": len(uses),
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.width // recipe.heads,
        "max_position_embeddings": recipe.context,
        "rope_theta": THETA,
        "rms_norm_eps": EPS,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": mark,
        "eos_token_id": mark,
    }


class GolfConfig(PretrainedConfig):
    """Qwen3's keys, `blocks` (of the recipe), and `layer_owners` (blocks/sharing.py) where layers are shared."""

    model_type = MODEL_TYPE

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 256
    rope_theta: float = THETA
    rms_norm_eps: float = EPS
    hidden_act: str = "silu"
    tie_word_embeddings: bool = True
    bos_token_id: int = 0
    eos_token_id: int = 0
    blocks: dict | None = None
    layer_owners: list | None = None

    def recipe(self) -> Recipe:
        """The recipe's keys that the model depends on; RecipeError for values that no model can have."""
        shape = {
            "layers": self.num_hidden_layers,
            "width": self.hidden_size,
            "heads": self.num_attention_heads,
            "kv_heads": self.num_key_value_heads,
            "inner": self.intermediate_size,
            "context": self.max_position_embeddings,
        }
        return Recipe.from_dict({**shape, **(self.blocks or {})})


class GolfForCausalLM(PreTrainedModel, GenerationMixin):
    """golf/model.py's model with a head that is a module.

    A cache keeps a text's tokens, as the keys of its first layer, and beside them what the layers keep of those that
    were read. Where the tokens go on, so do the layers; where a cache was cut back they read it again, as a memory's
    state cannot be taken back.
    """

    config_class = GolfConfig
    base_model_prefix = ""
    #: For source.maps.tables.
    rounded_tables = ("model.embed_ngrams",)
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: GolfConfig):
        super().__init__(config)
        self.model = Trunk(config.recipe(), config.vocab_size)
        if isinstance(self.model.embed_tokens, Embedding):
            self.lm_head, self._tied_weights_keys = Head(self.model.embed_tokens), {}
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids: (batch, context). Texts may be padded behind, not in front."""
        if attention_mask is not None and not bool(attention_mask[:, :1].all()):
            raise RequestError("a golf's model reads texts from their first token: padding goes behind them")
        new, past = input_ids.shape[1], None
        if past_key_values is not None:
            ids = input_ids[:, None, :, None]
            input_ids = past_key_values.update(ids, ids, 0)[0][:, 0, :, 0]
            past = getattr(past_key_values, "golf", None)
            if past is None or not torch.equal(past.ids, input_ids[:, :-new]):
                past = Past(len(input_ids))
            past_key_values.golf = past  # type: ignore[attr-defined]
        h = self.model(input_ids, past)[:, -(logits_to_keep or new) :]
        return CausalLMOutputWithPast(logits=self.lm_head(h), past_key_values=past_key_values)  # type: ignore[arg-type]


@cache
def register() -> None:
    """Make transformers' Auto classes know the class."""
    AutoConfig.register(MODEL_TYPE, GolfConfig)
    AutoModelForCausalLM.register(GolfConfig, GolfForCausalLM)
