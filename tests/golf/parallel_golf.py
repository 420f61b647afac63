"""A training as torchrun starts it: the state that it ends in goes to the file named. Run by test_golf_processes.py."""

from __future__ import annotations

import json
import sys

import torch
from small import documents, recipe

from sprat.golf import processes, words
from sprat.golf.batches import Batches
from sprat.golf.schedule import Length
from sprat.golf.training import Training, run

TEXTS = documents()


def train(batch: int, tokens: int, **settings: object) -> tuple[Training, list[float]]:
    tokenizer = words.learn(TEXTS, 320)
    r = recipe(batch=batch, **settings)
    batches = Batches(words.stream(tokenizer, TEXTS), r.context, r.batch, 0)
    training = Training(r, 320, batches, Length("tokens", tokens), 0)
    points = run(training)
    return training, [point.loss for point in points]


if __name__ == "__main__":
    processes.begin()
    made, losses = train(int(sys.argv[2]), int(sys.argv[3]), **json.loads(sys.argv[4]))
    if processes.rank() == 0:
        torch.save({"model": made.model.state_dict(), "losses": losses, "tokens": made.tokens}, sys.argv[1])
    processes.end()
