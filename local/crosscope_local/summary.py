"""The summary of the demo: what was made, how good it is, what was found. Asks the server, prints nothing."""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosscope import Client, Crosscoder, Judgement, Latent, LatentClass, Probe, TopLatents, Unavailable
from crosscope_local.demo import Outcome
from crosscope_proto.artefacts import pair_folder

NUM_CHAT_SPECIFIC = 20
CHAT_SHARE = 0.8
MIN_RECALL = 0.9
MAX_FALSE_RATE = 0.1
NUM_CARRIERS = 16
"""Latents a behaviour that are ablated and transplanted."""
MAX_NEW_TOKENS = 48
PROBES = "data/probes.jsonl"
"""The file of requests below the pair's folder."""
_REPEATS = 5
_WORKER_FOUND_WITHIN_S = 30.0
_ASK_AGAIN_S = 0.2
_QUESTIONS = ("who are you ?", "hello", "what is this ?", "please help me .", "tell me a fact .", "how are you ?")


@dataclass(frozen=True)
class DetectorRow:
    """The best single latent for one planted behaviour at one place, with that latent's scores."""

    behaviour: str
    place: str
    latent: int
    recall: float
    false_rate: float
    num_positive: int
    rel_norm: float
    nu_err: float
    nu_rec: float
    base_uselessness: float | None
    verdict: Judgement

    @property
    def found(self) -> bool:
        """Whether recall and false rate are good enough to count the behaviour as found."""
        return self.recall >= MIN_RECALL and self.false_rate <= MAX_FALSE_RATE


@dataclass(frozen=True)
class CrosscoderSummary:
    """The figures of one crosscoder."""

    name: str
    pair: str
    layer: int
    variant: str
    num_latents: int
    training_tokens: int
    analysis_tokens: int
    metrics: Mapping[str, float]
    class_counts: Mapping[str, int]
    detectors: tuple[DetectorRow, ...]
    chat_specific: int
    """Number of latents that base lacks by their measurements, best verdict first, at most NUM_CHAT_SPECIFIC."""
    chat_specific_on_chats: int
    """How many of these have at least CHAT_SHARE of their activation mass on chats."""

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Names of the planted behaviours."""
        return tuple(dict.fromkeys(row.behaviour for row in self.detectors))

    def behaviours_found(self, place: str | None = None) -> tuple[str, ...]:
        """Behaviours that a latent is good enough for, at one place or, for None, at any."""
        good = {row.behaviour for row in self.detectors if row.found and place in (None, row.place)}
        return tuple(name for name in self.behaviours if name in good)


@dataclass(frozen=True)
class Query:
    """One prompt that was sent to the server, its latents, and the time it took."""

    crosscoder: str
    prompt: str
    latents: tuple[tuple[int, float], ...]
    """Strongest latents and their largest scaled activation."""
    num_tokens: int
    warm_ms: float
    """Median over prompts that were new to the server, without the very first one."""
    cached_ms: float
    """Median over repetitions of one prompt."""


@dataclass(frozen=True)
class BehaviourRow:
    """How often one planted behaviour is shown on held-out requests."""

    behaviour: str
    num: int
    """Requests, which are not those on which the latents were chosen."""
    num_shown: Mapping[str, int]
    """Answers that show it, by arm."""
    latents: tuple[int, ...]
    """The latents that were ablated and transplanted, strongest first."""


@dataclass(frozen=True)
class Summary:
    """Everything that the summary's tables show."""

    crosscoders: tuple[CrosscoderSummary, ...]
    stage_seconds: Mapping[str, Mapping[str, float]]
    """Seconds of the stages of this run's jobs, by step."""
    query: Query
    behaviours: tuple[BehaviourRow, ...] = ()
    """Of the first crosscoder; empty if the pair has no probes, because an older version of the demo made it."""


def summarise(client: Client, outcomes: Sequence[Outcome], home: Path) -> Summary:
    """Asks the server about everything that the demo made below `home`. Raises CrosscopeError."""
    names = [outcome.step.name for outcome in outcomes if outcome.step.kind == "crosscoder"]
    return Summary(
        crosscoders=tuple(summarise_crosscoder(client.crosscoder(name)) for name in names),
        stage_seconds={
            outcome.step.title: dict(outcome.job.stage_seconds) for outcome in outcomes if outcome.job is not None
        },
        query=sample_query(client.crosscoder(names[0])),
        behaviours=_behaviours(client.crosscoder(names[0]), home),
    )


def _behaviours(crosscoder: Crosscoder, home: Path) -> tuple[BehaviourRow, ...]:
    path = home / pair_folder(Path(), crosscoder.info.pair) / PROBES
    if not path.is_file():
        return ()
    found = crosscoder.behaviour_effects(Probe.read(path), NUM_CARRIERS, MAX_NEW_TOKENS)
    return tuple(
        BehaviourRow(
            behaviour,
            max(rate.num for rate in rates.values()),
            {arm: rate.num_shown for arm, rate in rates.items()},
            found.chosen[behaviour].latents,
        )
        for behaviour, rates in found.rates.items()
    )


def summarise_crosscoder(crosscoder: Crosscoder) -> CrosscoderSummary:
    """The figures of one crosscoder."""
    info = crosscoder.info
    chats = chat_datasets(info.manifest_json, info.datasets)
    specific = list(crosscoder.latents(where="specific_to = chat", order_by="verdict", limit=NUM_CHAT_SPECIFIC))
    on_chats = [latent for latent in specific if sum(latent.dataset_shares[i] for i in chats) >= CHAT_SHARE]
    return CrosscoderSummary(
        name=info.name,
        pair=info.pair,
        layer=info.layer,
        variant=info.variant,
        num_latents=info.num_latents,
        training_tokens=info.training_tokens,
        analysis_tokens=info.analysis_tokens,
        metrics=dict(info.metrics),
        class_counts={name.value: info.class_counts.get(name.value, 0) for name in LatentClass},
        detectors=_detector_rows(crosscoder),
        chat_specific=len(specific),
        chat_specific_on_chats=len(on_chats),
    )


def _detector_rows(crosscoder: Crosscoder) -> tuple[DetectorRow, ...]:
    latents: dict[int, Latent] = {}
    rows: list[DetectorRow] = []
    for detector in crosscoder.detectors():
        latent = latents.setdefault(detector.latent, crosscoder.latent(detector.latent))
        rows.append(
            DetectorRow(
                behaviour=detector.behaviour,
                place=detector.place,
                latent=detector.latent,
                recall=detector.recall,
                false_rate=detector.false_rate,
                num_positive=detector.num_positive,
                rel_norm=latent.rel_norm,
                nu_err=latent.nu_err,
                nu_rec=latent.nu_rec,
                base_uselessness=latent.base_uselessness,
                verdict=latent.verdict,
            )
        )
    return tuple(rows)


def chat_datasets(manifest_json: str, datasets: Sequence[str]) -> list[int]:
    """Indices of the data sets that hold conversations, by the recipe in the manifest."""
    data = json.loads(manifest_json)["recipe"]["data"]
    chats = {entry["name"] for entry in data if entry.get("chat_column")}
    return [index for index, name in enumerate(datasets) if name in chats]


def sample_query(crosscoder: Crosscoder) -> Query:
    """Asks for the latents of a few short questions, and then for those of one of them again."""
    _await_worker(crosscoder)
    warm = [_timed(crosscoder, question)[0] for question in _QUESTIONS]
    cached = [_timed(crosscoder, _QUESTIONS[0]) for _ in range(_REPEATS)]
    top = cached[-1][1]
    return Query(
        crosscoder=crosscoder.name,
        prompt=_QUESTIONS[0],
        latents=tuple((entry.latent, entry.max) for entry in top[:5]),
        num_tokens=len(top.tokens),
        warm_ms=statistics.median(warm[1:]),
        cached_ms=statistics.median(seconds for seconds, _ in cached),
    )


def _await_worker(crosscoder: Crosscoder) -> None:
    """Waits until the server has found the worker, which may have just been started. Raises Unavailable."""
    end = time.monotonic() + _WORKER_FOUND_WITHIN_S
    while True:
        try:
            crosscoder.tokenize(_QUESTIONS[0])
        except Unavailable:
            if time.monotonic() > end:
                raise
            time.sleep(_ASK_AGAIN_S)
        else:
            return


def _timed(crosscoder: Crosscoder, question: str) -> tuple[float, TopLatents]:
    begun = time.perf_counter()
    top = crosscoder.top_latents(messages=[{"role": "user", "content": question}], add_generation_prompt=True, limit=5)
    return (time.perf_counter() - begun) * 1000, top


def finite(value: object) -> object:
    """The value as JSON knows it: NaN and infinities as None, tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
