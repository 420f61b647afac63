"""lm-evaluation-harness's tasks by name, through an adapter of our own: `pip install 'sprat[eval]'`.

The harness words the questions, fetches them (from the hub, where they are not local) and scores the answers; both
models see the same items, and its score of each item is what is paired.
"""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from sprat.errors import ProofError, nearest
from sprat.progress import Progress, silent
from sprat.prove.tasks.files import spread
from sprat.prove.tasks.pairs import paired
from sprat.prove.tasks.remembered import was_remembered
from sprat.prove.tasks.requests import Request, Scorer

try:
    from lm_eval import evaluator, utils  # pyright: ignore[reportMissingImports]
    from lm_eval.api import task as harness_task  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    raise ProofError(
        f"tasks by name need lm-evaluation-harness ({error.name} is missing): pip install 'sprat[eval]', or give "
        "a JSON-lines file"
    ) from None

#: Metrics of an item that are right or wrong, the first that a task has; after them any that is.
_METRICS = ("acc", "exact_match", "acc_norm")
#: A text whose whole likelihood is wanted is read in windows of at most so many tokens.
_WINDOW = 2048


class HarnessModel(LM):
    """`lm_eval.api.model.LM` of a scorer: `lm_eval.simple_evaluate(model=HarnessModel(scorer), …)`."""

    def __init__(self, scorer: Scorer, stage: str = "reading questions", progress: Progress = silent):
        super().__init__()
        self._scorer, self._stage, self._progress = scorer, stage, progress

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        words, limit = self._scorer.words, self._scorer.context
        pairs = (request.args for request in requests)
        asked = [words.request(context, continuation, limit) for context, continuation in pairs]
        answers = self._scorer.score(asked, self._stage, self._progress)
        return [(answer.logprob, answer.greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        words = self._scorer.words
        windows: list[Request] = []
        counts = []
        for (text,) in (request.args for request in requests):
            pairs = utils.get_rolling_token_windows(
                token_list=words.encode(text, True),
                prefix_token=words.begin(),
                max_seq_len=min(_WINDOW, self._scorer.context),
                context_len=1,
            )
            own = [utils.make_disjoint_window(pair) for pair in pairs]
            windows += [Request(tuple(front), tuple(behind)) for front, behind in own]
            counts.append(len(own))
        answers = iter(self._scorer.score(windows, self._stage, self._progress))
        return [sum(next(answers).logprob for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for i, (context, options) in enumerate(request.args for request in requests):
            texts.append(self._write(context, dict(normalize_gen_kwargs(options))))
            self._progress(self._stage, i + 1, len(requests))
        return texts

    def _write(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample"):
            raise ProofError("this task draws its answers at random: only greedy ones are compared")
        words, most = self._scorer.words, options["max_gen_toks"]
        room = self._scorer.context - most
        if room < 1:
            raise ProofError(
                f"this task asks for answers of {most} tokens; the model's context is {self._scorer.context}"
            )
        stops = [stop for stop in options.get("until") or [] if stop]

        def stop(written: list[int]) -> bool:
            text = words.decode(written)
            return any(stop in text for stop in stops)

        ids = words.encode(context, True) or [words.begin()]
        text = words.decode(self._scorer.write(ids[-room:], most, stop))
        for stop_text in stops:
            text = text.split(stop_text)[0]
        return text


class Harness:
    """Tasks by name (or a task's own .yaml), loaded before any model is asked. `items`: of each, evenly spread."""

    def __init__(self, names: Sequence[str], items: int | None = None):
        with _quiet():
            # The index of all its names takes seconds to build.
            self._manager = TaskManager(include_defaults=not all(name.endswith(".yaml") for name in names))
            known = self._manager.all_tasks
            for name in names:
                if name not in known and not name.endswith(".yaml"):
                    raise ProofError(
                        f"no file and no task of lm-evaluation-harness is called {name!r}{nearest(name, known)}"
                    )
            try:
                self._tasks: dict[str, Any] = self._manager.load(list(names))["tasks"]
                self._samples = {
                    name: spread(len(task.eval_docs), items) for name, task in self._tasks.items()
                }
            except Exception as error:  # the hub, the network, the data sets' own code and parsers
                first = str(error).strip().partition("\n")[0]
                raise ProofError(
                    f"cannot load {', '.join(names)}: {type(error).__name__}: {first} (lm-evaluation-harness takes its "
                    "questions from the hub; a JSON-lines file needs no network)"
                ) from error

    def run(self, scorers: tuple[Scorer, Scorer], progress: Progress = silent) -> list[dict[str, Any]]:
        """One entry of the proof's `tasks` for each task. `ProofError` where items are not right or wrong."""
        evaluate: Any = evaluator.simple_evaluate
        found, seconds = [], {}
        for scorer, side in zip(scorers, ("original", "compressed"), strict=True):
            started = time.perf_counter()
            model = HarnessModel(scorer, f"tasks: {side}", progress)
            with _quiet():
                results = evaluate(
                    model=model,
                    tasks=list(self._tasks.values()),
                    task_manager=self._manager,
                    samples=self._samples,
                    bootstrap_iters=0,
                    log_samples=True,
                )
            found.append(results["samples"])
            seconds[side] = round(time.perf_counter() - started, 3)
        return [
            self._entry(name, task, found[0][name], found[1][name])
            | {"seconds": seconds, "remembered": was_remembered(scorers[0])}
            for name, task in self._tasks.items()
        ]

    def _entry(self, name: str, task: Any, before: list[dict], after: list[dict]) -> dict[str, Any]:
        kept = before[0]["filter"]  # a task may read its answers in several ways: the first
        before, after = ([s for s in samples if s["filter"] == kept] for samples in (before, after))
        metric = _metric(name, [*before, *after])  # 0 or 1 by chance on one side is no answer right or wrong
        entry = {
            "name": name,
            "metric": metric if kept == "none" else f"{metric},{kept}",
            **_paired(metric, before, after),
            "chance": None,
            "source": {
                "harness": importlib.metadata.version("lm_eval"),
                "version": task.config.metadata.get("version") if task.config.metadata else None,
                "items": len(task.eval_docs),
            },
        }
        if task.OUTPUT_TYPE == "multiple_choice":
            entry["chance"] = float(np.mean([1 / len(sample["arguments"]) for sample in before]))
        if metric == "acc" and "acc_norm" in before[0]["metrics"]:
            entry["acc_norm"] = _paired("acc_norm", before, after)
        return entry


def _metric(name: str, samples: list[dict[str, Any]]) -> str:
    """The first metric that is 0 or 1 for every item."""
    has = samples[0]["metrics"]
    for metric in [*(m for m in _METRICS if m in has), *(m for m in has if m not in _METRICS)]:
        if all(isinstance(s[metric], int | float | bool) and s[metric] in (0, 1) for s in samples):
            return metric
    raise ProofError(
        f"the task {name} has no metric by which an item is right or wrong (it has {', '.join(has) or 'none'}), so "
        "answers cannot be paired"
    )


def _paired(metric: str, before: list[dict], after: list[dict]) -> dict[str, Any]:
    original, compressed = (np.array([s[metric] for s in samples], bool) for samples in (before, after))
    return paired(original, compressed).to_json()


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness and `datasets` log and draw bars; a library must not. Their settings are put back."""
    import datasets  # pyright: ignore[reportMissingImports]

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars, bar = not datasets.are_progress_bars_disabled(), harness_task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    harness_task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        harness_task.tqdm = bar
        if bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
