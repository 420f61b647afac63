"""Where a decoder layer keeps what can be removed: the neurons of its feed-forward part, its key-value groups.

Feed-forward part: the module that holds the layer's last map (down), whose other maps (up, gate) all end where that one
begins. Attention: the maps q_proj, k_proj, v_proj of one module and the map that reads their result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sprat.errors import SourceError
from sprat.source.maps import Map, groups, layer_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Names under which configs keep the width of the feed-forward part.
WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


@dataclass(frozen=True)
class Part:
    """Maps of one layer that share removable units. `inner`: maps whose rows they are; `outer`: whose columns."""

    inner: tuple[Map, ...]
    outer: Map


def feed_forward(model: PreTrainedModel) -> dict[int, Part]:
    """The feed-forward part of every layer. SourceError (naming the model) where there is no such part."""
    found = {}
    for layer, members in layer_groups(groups(model)).items():
        maps = [m for group in members for m in group.maps]
        *inner, outer = [m for m in maps if _parent(m) == _parent(maps[-1])]
        width = outer.shape[1]
        fine = inner and all(m.shape[0] == width for m in inner) and not _strange(model, [*inner, outer])
        if not fine or len({_parent(m) for m in maps}) > 2:  # more than attention and this: experts, adapters
            raise SourceError(
                f"{type(model).__name__}: its feed-forward part is not one that neurons can be removed from (maps "
                f"whose rows are the {width} columns of {outer.name}): keep the recipe's `ffn` at 1"
            )
        found[layer] = Part(tuple(inner), outer)
    return found


def attention(model: PreTrainedModel) -> dict[int, Part]:
    """q, k, v and output map of every layer. SourceError (naming the model) where they are not of that form."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None)
    found = {}
    for layer, members in layer_groups(groups(model)).items():
        maps = [m for group in members for m in group.maps]
        inner = {m.name.split(".")[-2]: m for m in maps}
        parts = [inner.get(name) for name in ("q_proj", "k_proj", "v_proj")]
        q, k, v = parts
        outer = [m for m in maps if q is not None and _parent(m) == _parent(q) and m not in parts]
        fine = q and k and v and kv_heads and len(outer) == 1
        if fine and q and k and v:
            dim = q.shape[0] // heads
            fine = outer[0].shape[1] == q.shape[0] and k.shape[0] == v.shape[0] == kv_heads * dim
            fine = fine and not _strange(model, [q, k, v, outer[0]], allowed=(dim,))
        if not (fine and q and k and v):
            raise SourceError(
                f"{type(model).__name__}: its attention is not made of q_proj, k_proj, v_proj and an output map with "
                "a key-value head for each group of heads, so no group can be removed: keep the recipe's `kv_heads` "
                "at 0"
            )
        found[layer] = Part((q, k, v), outer[0])
    return found


def _parent(m: Map) -> str:
    return m.name.rsplit(".", 2)[0]


def _strange(model: PreTrainedModel, maps: list[Map], allowed: tuple[int, ...] | None = None) -> bool:
    """Whether their module holds more than them and vectors of the shape `allowed`: norms of all units, factors."""
    own = {id(p) for m in maps for p in m.module.parameters()}
    module = model.get_submodule(_parent(maps[0]))
    return any(id(p) not in own and tuple(p.shape) != allowed for p in module.parameters())
