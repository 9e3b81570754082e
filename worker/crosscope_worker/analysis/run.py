"""The analysis: one pass over held-out activations, then tables.

One pass over the models' activations feeds every accumulator; what comes after reads only their sums and the store.
Knows the order of the work; the formulas are in the modules that it calls.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.behaviours import behaviour_table
from crosscope_worker.analysis.coactivation import CoActivation
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.examples import (
    TextFacts,
    choose,
    example_table,
    peak_windows,
    sequence_table,
    top_tokens,
)
from crosscope_worker.analysis.geometry import CHAT_ONLY_ABOVE, geometry
from crosscope_worker.analysis.intake import blocks
from crosscope_worker.analysis.latents import Measured, latent_table
from crosscope_worker.analysis.lens import find_lenses
from crosscope_worker.analysis.moments import Moments
from crosscope_worker.analysis.quality import Quality
from crosscope_worker.analysis.store import Store
from crosscope_worker.analysis.uselessness import ChatOnlySums
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.work import Progress

if TYPE_CHECKING:
    from crosscope_worker.data.harvest import Harvest
    from crosscope_worker.models.pair import Pair
    from crosscope_worker.tokenizer.tokens import TextTokenizer

STAGE = "analyse"
_PASS_SHARE = 0.9
"""Share of the stage that the pass takes, for progress."""


@dataclass(frozen=True)
class Analysis:
    """Everything that was measured, as the tables of the artefact (crosscope_proto.artefacts)."""

    latents: pa.Table
    sequences: pa.Table
    examples: pa.Table
    behaviours: pa.Table
    """Empty where nothing is tagged."""
    datasets: tuple[str, ...]
    num_tokens: int
    num_shards: int
    """Shards that got tokens; at most the spec's."""
    metrics: dict[str, float]
    """fve_base, fve_chat, l0, dead_share, num_living; outlier_share and the fve_…_inliers without outliers."""
    class_counts: dict[str, int]
    histogram_edges: tuple[float, ...]
    uselessness: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why something was not measured, by its name."""


@torch.no_grad()
def analyse(
    crosscoder: Crosscoder,
    harvests: "Iterable[Harvest]",
    spec: AnalysisSpec,
    datasets: Sequence[str],
    tokenizer: "TextTokenizer",
    pair: "Pair | None",
    progress: Progress,
    parts: Sequence[str] = (),
) -> Analysis:
    """Measures every latent of a crosscoder on held-out activations.

    `datasets` names the data sets that `Harvest.dataset` counts; `pair` gives the heads for the logit lens, which is
    empty without it, and where a model has none (`Analysis.unavailable` says why); `parts` are the parts of the
    dictionary, [latent], none where it has none. All statistics are in the crosscoder's own input space
    (analysis/block.py).
    Memory beyond the weights: see moments.py, uselessness.py, coactivation.py and store.py. Raises AnalysisError when
    there is no token, or an activation is not finite; whatever `progress` raises passes through.
    """
    if not datasets:
        raise AnalysisError("the analysis has no data set; name at least one")
    shape = geometry(crosscoder)
    moments = Moments(crosscoder, spec.num_shards, len(datasets))
    quality = Quality(crosscoder)
    chat_only = ChatOnlySums(crosscoder, shape.rel_norm > CHAT_ONLY_ABOVE)
    coactivation, store = CoActivation(), Store()
    try:
        num_tokens = 0
        for intake in blocks(crosscoder, harvests, spec, datasets):
            for text in intake.texts:
                store.add_text(text)
            for accumulator in (moments, quality, chat_only, coactivation, store):
                accumulator.add(intake.block)
            num_tokens += intake.block.num_tokens
            progress(STAGE, _PASS_SHARE * min(1.0, num_tokens / spec.max_tokens), f"{num_tokens} tokens measured")
        if num_tokens == 0:
            raise AnalysisError(
                "no held-out token is left to analyse: the held-out texts are empty or the token policy dropped them "
                "all; add data, lower tokens.held_out_every, or loosen the policy"
            )
        accumulators = moments, quality, chat_only, coactivation, store
        return _finish(crosscoder, *accumulators, spec, datasets, tokenizer, pair, progress, parts)
    finally:
        store.close()


def _finish(
    crosscoder: Crosscoder,
    moments: Moments,
    quality: Quality,
    chat_only: ChatOnlySums,
    coactivation: CoActivation,
    store: Store,
    spec: AnalysisSpec,
    datasets: Sequence[str],
    tokenizer: "TextTokenizer",
    pair: "Pair | None",
    progress: Progress,
    parts: Sequence[str],
) -> Analysis:
    progress(STAGE, _PASS_SHARE, "choosing examples")
    segments = store.segments()
    choice = choose(segments, peak_windows(segments, store), TextFacts.of(store), datasets, spec)
    examples, texts = example_table(choice, segments, store, datasets)
    progress(STAGE, 0.92, "scoring behaviours")
    behaviours = behaviour_table(store, segments)
    progress(STAGE, 0.94, "scoring every latent")
    peaks = top_tokens(choice, segments, store, crosscoder.num_latents)
    lenses, unavailable = find_lenses(pair)
    measured = Measured(crosscoder, moments, chat_only, coactivation, peaks, spec, tokenizer, lenses, parts)
    latents = latent_table(measured)
    progress(STAGE, 0.99, "writing the tables")
    found = latents.column("latent_class").to_pylist()
    num_living = len(found) - found.count(str(LatentClass.DEAD))
    living = {"num_living": float(num_living), "dead_share": 1 - num_living / len(found)}
    return Analysis(
        latents=latents,
        sequences=sequence_table(store, texts, datasets, tokenizer),
        examples=examples,
        behaviours=behaviours,
        datasets=tuple(datasets),
        num_tokens=int(measured.sums.num_tokens.sum()),
        num_shards=measured.sums.num_shards,
        metrics=quality.metrics() | living | {"repeat_share": moments.repeat_share()},
        class_counts={str(each): found.count(str(each)) for each in LatentClass},
        histogram_edges=moments.histogram()[1],
        uselessness=measured.useless.facts,
        unavailable=unavailable,
    )
