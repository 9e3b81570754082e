"""The analysis: a pass over held-out activations, then tables, then the fidelity of reconstructions.

The pass feeds every accumulator; passes over parts of the texts merge (accumulators.py). The tables read only their
sums and the store; fidelity and causal effects run both models again. Knows the order of the work; the formulas are in
the modules that it calls.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.specs import AnalysisSpec
from crosscope_proto.stages import Stage
from crosscope_worker.analysis.accumulators import Accumulators
from crosscope_worker.analysis.behaviours import behaviour_table
from crosscope_worker.analysis.causal import measure_causal
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.examples import (
    TextFacts,
    choose,
    example_table,
    peak_contexts,
    peak_windows,
    sequence_table,
    silent_texts,
    top_tokens,
)
from crosscope_worker.analysis.fidelity import fidelity, patched_latents
from crosscope_worker.analysis.intake import Intake, blocks
from crosscope_worker.analysis.latents import Measured, latent_table, with_columns
from crosscope_worker.analysis.lens import find_lenses
from crosscope_worker.analysis.whole_texts import Splicing
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.work import Progress

if TYPE_CHECKING:
    from crosscope_worker.data.harvest import Harvest
    from crosscope_worker.models.pair import Pair
    from crosscope_worker.tokenizer.tokens import TextTokenizer

PASS_SHARE = 0.9
"""Share of the stage's progress that belongs to the pass."""


@dataclass(frozen=True)
class Analysis:
    """All results of an analysis, as the tables of the artefact (crosscope_proto.artefacts)."""

    latents: pa.Table
    sequences: pa.Table
    examples: pa.Table
    behaviours: pa.Table
    """Empty if nothing is tagged."""
    datasets: tuple[str, ...]
    num_tokens: int
    num_shards: int
    """Number of shards that have tokens; at most the spec's."""
    metrics: dict[str, float]
    """fve_base, fve_chat, l0, dead_share, num_living; outlier_share, and fve_…_inliers without outliers; the figures of
    `fidelity`, and those of `causal_effects`."""
    class_counts: dict[str, int]
    histogram_edges: tuple[float, ...]
    uselessness: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    """Reasons for what was not measured, by name."""
    warnings: tuple[str, ...] = ()
    """What was unusual; sentences for people."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The data and models on which a crosscoder is measured."""

    harvests: "Iterable[Harvest]"
    """What `analyse` measures; `conclude` reads nothing of it."""
    datasets: Sequence[str]
    """Names of the data sets that `Harvest.dataset` counts."""
    tokenizer: "TextTokenizer"
    pair: "Pair | None" = None
    """The models whose heads make the logit lens; without them, and for a model without a lens, it is empty."""
    splicing: Splicing | None = None
    """None: fidelity is not measured."""
    causal: Splicing | None = None
    """The texts of causal effects; None: they are not measured."""


@torch.no_grad()
def analyse(
    crosscoder: Crosscoder, held_out: HeldOut, spec: AnalysisSpec, progress: Progress, parts: Sequence[str] = ()
) -> Analysis:
    """Measures every latent of a crosscoder on held-out activations, then the fidelity of its reconstructions, then the
    causal effects of some latents.

    `parts` are the parts of the dictionary, [latent], empty without parts. All statistics are in the crosscoder's own
    input space (analysis/block.py). Memory beyond the weights: see moments.py, uselessness.py, coactivation.py and
    store.py. Raises AnalysisError if there is no token; whatever the harvests, `fidelity`, `measure_causal`
    and `progress` raise passes through.
    """
    if not held_out.datasets:
        raise AnalysisError("the analysis has no data set; name at least one")
    found = Accumulators.of(crosscoder, spec, len(held_out.datasets))
    try:
        fill(found, blocks(crosscoder, held_out.harvests, spec, held_out.datasets), spec, progress)
        return conclude(crosscoder, held_out, spec, progress, found, parts)
    finally:
        found.close()


def fill(
    found: Accumulators, intakes: Iterable[Intake], spec: AnalysisSpec, progress: Progress, first_token: int = 0
) -> None:
    """Adds blocks of texts to accumulators.

    `first_token`: number of tokens that are measured elsewhere or were before, for the progress.
    """
    num_tokens = first_token
    for intake in intakes:
        found.add(intake)
        num_tokens += intake.block.num_tokens
        share = PASS_SHARE * min(1.0, num_tokens / spec.max_tokens)
        progress(Stage.ANALYSE, share, f"{num_tokens} tokens measured")
    found.settle()


@torch.no_grad()
def conclude(
    crosscoder: Crosscoder,
    held_out: HeldOut,
    spec: AnalysisSpec,
    progress: Progress,
    found: Accumulators,
    parts: Sequence[str] = (),
) -> Analysis:
    """The results of an analysis whose pass is over: tables, then fidelity, then causal effects. See `analyse`.

    `found` is closed once the tables are made.
    """
    if int(found.shard_sums.num_tokens.sum()) == 0:
        raise AnalysisError(
            "no held-out token is left to analyse: the held-out texts are empty, or the token policy dropped them "
            "all; add data, lower tokens.held_out_every, or loosen the policy"
        )
    analysis = _tables(crosscoder, held_out, spec, progress, found, parts)
    found.close()
    if held_out.splicing is not None:
        patched = patched_latents(analysis.latents)
        figures = fidelity(crosscoder, held_out.splicing, patched, spec.spliced_tokens, progress)
        analysis = replace(analysis, metrics=analysis.metrics | figures)
    if held_out.causal is not None and spec.causal is not None:
        effects = measure_causal(crosscoder, held_out.causal, analysis.latents, spec.causal, progress)
        unavailable = analysis.unavailable | ({"causal": effects.reason} if effects.reason else {})
        latents, metrics = with_columns(analysis.latents, effects.columns), analysis.metrics | effects.metrics
        analysis = replace(analysis, latents=latents, metrics=metrics, unavailable=unavailable)
    return analysis


def _tables(
    crosscoder: Crosscoder,
    held_out: HeldOut,
    spec: AnalysisSpec,
    progress: Progress,
    found: Accumulators,
    parts: Sequence[str],
) -> Analysis:
    store, datasets, tokenizer = found.store, held_out.datasets, held_out.tokenizer
    progress(Stage.ANALYSE, PASS_SHARE, "choosing examples")
    segments = store.segments()
    choice = choose(segments, peak_windows(segments, store), TextFacts.of(store), datasets, spec)
    examples, texts = example_table(choice, silent_texts(choice, segments, store, spec), segments, store, datasets)
    progress(Stage.ANALYSE, 0.92, "scoring behaviours")
    behaviours = behaviour_table(store, segments)
    progress(Stage.ANALYSE, 0.94, "scoring every latent")
    peaks = top_tokens(choice, segments, store, crosscoder.num_latents)
    lenses, unavailable = find_lenses(held_out.pair)
    sequences = sequence_table(store, texts, datasets, tokenizer)
    contexts = peak_contexts(choice, segments, sequences, texts, crosscoder.num_latents)
    measured = Measured(crosscoder, found, peaks, contexts, spec, tokenizer, lenses, parts)
    latents = latent_table(measured)
    progress(Stage.ANALYSE, 0.99, "writing the tables")
    classes = latents.column("latent_class").to_pylist()
    num_living = len(classes) - classes.count(str(LatentClass.DEAD))
    living = {"num_living": float(num_living), "dead_share": 1 - num_living / len(classes)}
    return Analysis(
        latents=latents,
        sequences=sequences,
        examples=examples,
        behaviours=behaviours,
        datasets=tuple(datasets),
        num_tokens=int(found.shard_sums.num_tokens.sum()),
        num_shards=found.shard_sums.num_shards,
        metrics=found.quality.metrics() | living | {"repeat_share": found.moments.repeat_share()},
        class_counts={str(each): classes.count(str(each)) for each in LatentClass},
        histogram_edges=found.moments.histogram()[1],
        uselessness=measured.useless.facts,
        unavailable=unavailable,
        warnings=measured.useless.sentences(),
    )
