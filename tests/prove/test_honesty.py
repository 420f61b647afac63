"""Two tokenizers that agree nearly everywhere are not the same."""

from __future__ import annotations

import pytest

from sprat.prove import honesty
from sprat.prove.honesty import different_tokens
from sprat.prove.text import Text


class Letters:
    """A token a letter, but for one letter, which is two."""

    def __init__(self, two: str = ""):
        self.two = two

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(c) for letter in text for c in (letter * 2 if letter == self.two else letter)]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize("place", [0, 111, 999])
def test_a_difference_is_found_at_either_end_and_between(place):
    thousands = ["a" * 1000] * 1000
    thousands[place] = "ab" * 500
    one = [Text("".join(thousands), "a text", 10**6, "")]
    said = different_tokens(Letters("b"), Letters(), one, sample=10_000)
    assert "different tokens ('bab' against 'aba')" in said
    assert different_tokens(Letters("b"), Letters("b"), one, sample=10_000) == ""


def test_contexts_beyond_what_the_model_was_made_for_are_told():
    config = {"max_position_embeddings": 256}
    assert honesty._beyond(config, 256) == [] == honesty._beyond({}, 10_000)
    for given in (config, {"text_config": config, "max_position_embeddings": 9}):
        (said,) = honesty._beyond(given, 512)
        assert "contexts of 512 tokens are longer than the 256 that the model was made for" in said
