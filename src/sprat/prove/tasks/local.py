"""A model's answers to a file's questions, scored as lm-evaluation-harness scores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sprat.progress import Progress, silent
from sprat.prove.tasks.files import Task
from sprat.prove.tasks.requests import Scorer


@dataclass(frozen=True)
class Outcome:
    """Of each question, arrays of (items,)."""

    right: np.ndarray
    """bool. A cloze: the answer is what the model would write; else the likeliest choice is the right one (`acc`)."""
    right_by_bytes: np.ndarray
    """bool. With log-likelihoods divided by the choices' UTF-8 bytes."""
    nll: np.ndarray
    """Nats: −log p(right answer)."""


def answer(scorer: Scorer, task: Task, stage: str, progress: Progress = silent) -> Outcome:
    """Ask every question. A choice follows its context after a space."""
    requests = [
        scorer.words.request(item.context, f" {choice}", scorer.context)
        for item in task.items
        for choice in item.choices
    ]
    answers = iter(scorer.score(requests, stage, progress))
    right, right_by_bytes, nll = [], [], []
    for item in task.items:
        found = [next(answers) for _ in item.choices]
        logprobs = np.array([answer.logprob for answer in found])
        nll.append(-logprobs[item.gold])
        if task.cloze:
            right.append(found[0].greedy)
            right_by_bytes.append(found[0].greedy)
        else:
            lengths = np.array([len(choice.encode()) for choice in item.choices])
            right.append(logprobs.argmax() == item.gold)
            right_by_bytes.append((logprobs / lengths).argmax() == item.gold)
    return Outcome(np.array(right, bool), np.array(right_by_bytes, bool), np.array(nll))
