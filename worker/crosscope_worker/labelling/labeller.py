"""One latent after the other: a label, then its scores. Knows explainers and texts; knows neither files nor jobs."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

from crosscope_proto.label_specs import (
    NOTHING,
    ChatModel,
    Cost,
    Endpoint,
    explaining_cost,
    judging_cost,
)
from crosscope_worker.labelling.asking import NoAnswer
from crosscope_worker.labelling.examples import Texts
from crosscope_worker.labelling.explainer import Explainer
from crosscope_worker.labelling.scores import balanced_accuracy

NO_TEXTS = "the version holds no text on which it fires"
"""Reason why a latent got no label."""
BEAT_S = 0.5
"""Seconds after which a job that waits for answers shows that it lives, and hears of a cancel."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome:
    """What came of one latent."""

    latent: int
    label: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why it has no label; empty if it has one."""
    detail: str = ""
    num_unjudged: int = 0
    """Texts on which the label should be scored, and which were not judged."""


def cost_of(texts: Texts, explainer: Endpoint | ChatModel) -> Cost:
    """What a latent with these texts takes."""
    if not texts.shown:
        return NOTHING
    found = explaining_cost([len(window.shown) for window in texts.shown])
    for plain, _ in (_detection(texts), _fuzzing(texts)):
        found += judging_cost(explainer, [len(text) for text in plain])
    return found


def label_latent(latent: int, texts: Texts, explainer: Explainer) -> Outcome:
    """A latent's label and scores, or why it has none. Raises LabelError if no latent will get one."""
    if not texts.shown:
        return Outcome(latent, reason=NO_TEXTS)
    try:
        label = explainer.label(texts.shown)
    except NoAnswer as error:
        return Outcome(latent, reason=error.reason, detail=str(error))
    scores: dict[str, float] = {}
    num_unjudged = 0
    for measure, (plain, truth) in (("detection", _detection(texts)), ("fuzzing", _fuzzing(texts))):
        judged = explainer.judge(measure, label, plain) if set(truth) == {True, False} else []
        num_unjudged += judged.count(None)
        if judged and (score := balanced_accuracy(judged, truth)) is not None:
            scores |= score.named(measure)
    return Outcome(latent, label, scores, num_unjudged=num_unjudged)


def _detection(texts: Texts) -> tuple[list[str], list[bool]]:
    """Held-out texts without marks in a fixed mixture, and whether the latent fires on each."""
    both = [*((window.plain, True) for window in texts.firing), *((window.plain, False) for window in texts.silent)]
    both.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    return [text for text, _ in both], [fires for _, fires in both]


def _fuzzing(texts: Texts) -> tuple[list[str], list[bool]]:
    """Held-out texts with marks, and whether the marks are right."""
    return [window.shown for window, _ in texts.marks], [is_right for _, is_right in texts.marks]


def side_by_side(items: Sequence[T], work: Callable[[T], R], num_threads: int) -> Iterator[R | None]:
    """What `work` gives for each item, as it comes, and None from time to time while nothing comes.

    Raises what `work` raises. Threads that still work when the caller goes away end with the process.
    """
    waiting: SimpleQueue[T] = SimpleQueue()
    done: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((work(item), None))
            except BaseException as error:  # handed to the caller
                done.put((None, error))
                return

    for number in range(min(num_threads, len(items))):
        Thread(target=run, name=f"label-{number}", daemon=True).start()
    left = len(items)
    try:
        while left:
            try:
                result, error = done.get(timeout=BEAT_S)
            except Empty:
                yield None
                continue
            if error is not None:
                raise error
            left -= 1
            yield result
    finally:
        while not waiting.empty():
            try:
                waiting.get_nowait()
            except Empty:
                break
