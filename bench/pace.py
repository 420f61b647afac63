"""What a token costs each recipe, by steps taken in turns: equal compute on a machine that does more.

A clock, the processor's too, charges a recipe for what the machine does beside it: seeds of one recipe have differed by
40 % in the tokens that a processor minute gave them. Here all recipes go through whole trainings of a few steps side by
side, a step of each in turn, so that whatever else runs slows all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from sprat.golf import words
from sprat.golf.batches import Batches
from sprat.golf.recipe import Recipe
from sprat.golf.schedule import Length
from sprat.golf.training import Training
from sprat.progress import Progress, silent

#: Steps of each recipe's short training.
ROUNDS = 48
#: Documents that they read.
TIMED = 20


def timed(documents: Sequence[str]) -> Sequence[str]:
    """Those of `documents`, evenly spread, that recipes are timed on."""
    return documents[:: max(1, len(documents) // TIMED)]


def paces(
    recipes: Mapping[str, Recipe],
    documents: Sequence[str],
    clock: Callable[[], float] = time.process_time,
    rounds: int = ROUNDS,
    progress: Progress = silent,
) -> dict[str, float]:
    """Seconds of `clock` a token of each, over a training of `rounds` steps that goes through the recipe's phases."""
    vocabularies = {
        recipe.vocabulary: words.learn(documents, recipe.vocabulary) for recipe in recipes.values()
    }
    trainings = {}
    for name, recipe in recipes.items():
        tokenizer = vocabularies[recipe.vocabulary]
        batches = Batches(words.stream(tokenizer, documents), recipe.context, recipe.batch, 0)
        length = Length("tokens", rounds * recipe.step_tokens)
        trainings[name] = Training(recipe, tokenizer.get_vocab_size(), batches, length, 0)
    seconds = dict.fromkeys(recipes, 0.0)
    for done in range(rounds):
        for name, training in trainings.items():
            started = clock()
            training.advance()
            seconds[name] += clock() - started
        progress("pace", done + 1, rounds)
    return {name: spent / trainings[name].tokens for name, spent in seconds.items()}
