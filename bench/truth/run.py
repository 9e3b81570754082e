"""One run: plant, train with the project's trainer, measure with its analysis, score; then the null test.

Knows the order of the work; formulas are in score.py and in the analysis.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.truth import score
from bench.truth.planted import Planted, PlantedSource, PlantedSpec, plant
from crosscope_proto.artefacts import LatentClass
from crosscope_proto.dictionaries import Known, dictionary
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.scaling_columns import beta_column
from crosscope_proto.specs import AnalysisSpec, DataSpec, PairSpec, TrainingSpec
from crosscope_proto.verdict import FIGURES, Verdict, judged
from crosscope_worker.analysis.geometry import classes, difference_classes, geometry
from crosscope_worker.analysis.intake import blocks
from crosscope_worker.analysis.moments import Moments
from crosscope_worker.analysis.quality import Quality
from crosscope_worker.analysis.scaling import directions, estimates, jackknife
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.training import train
from crosscope_worker.work import silent

_DATASET = "planted"


@dataclass(frozen=True)
class Sizes:
    """Amounts of training and measuring."""

    steps: int = 6000
    batch_size: int = 1024
    num_latents: int = 512
    analysis_tokens: int = 131_072
    lr: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.2
    dead_after_tokens: int = 250_000


@dataclass(frozen=True)
class Variant:
    """A dictionary to try, and its name in the report."""

    name: str
    options: dict[str, Any]
    """Fields of its spec, all but the number of latents."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Fields whose value is a share of the number of latents."""

    def spec(self, num_latents: int) -> Known:
        """The dictionary's spec in a recipe."""
        counts: dict[str, Any] = {name: round(share * num_latents) for name, share in self.shares.items()}
        return dictionary(num_latents=num_latents, **self.options, **counts)


def run(variant: Variant, seed: int, sizes: Sizes, spec: PlantedSpec) -> dict[str, float]:
    """All scores of a variant and seed, and the seconds of the training.

    The null test trains once more, on as many latents, all of them shared: both models have the same activations apart
    from independent noise.
    """
    planted = plant(spec, seed)
    started = time.monotonic()
    crosscoder = trained(variant, planted, sizes)
    train_s = time.monotonic() - started
    measured, quality = measure(crosscoder, planted, sizes.analysis_tokens)
    is_difference = crosscoder.streams.is_difference
    rows = planted.differences() if is_difference else planted.rows
    matches = score.best_matches(rows, measured)
    null_shares: dict[str, float] = {}
    if not is_difference:  # a dictionary of differences would learn only noise
        null = plant(same_in_both(spec), seed)
        null_shares = score.null_shares(measure(trained(variant, null, sizes), null, sizes.analysis_tokens)[0])
    return (
        score.recovered(planted, matches, rows)
        | score.exclusive_aurocs(planted, matches, rows, measured)
        | score.label_counts(score.chat_only_labels(planted, measured), measured)
        | score.weak_ratio(planted, matches, measured)
        | null_shares
        | {name: quality[name] for name in ("fve_base", "fve_chat", "fve_difference", "l0") if name in quality}
        | {"dead_share": float(1 - measured.living.mean()), "train_s": train_s}
    )


def same_in_both(spec: PlantedSpec) -> PlantedSpec:
    """The planted latents of the null test: as many latents, all of them shared."""
    none = {"num_rotated": 0, "num_weak": 0, "num_base_only": 0, "num_chat_only": 0}
    return replace(spec, num_shared=spec.num_latents, **none)


def trained(variant: Variant, planted: Planted, sizes: Sizes) -> Crosscoder:
    """A crosscoder trained on planted activations, from the same seed."""
    recipe = CrosscoderRecipe(
        kind="crosscoder",
        name=_DATASET,
        pair=PairSpec(name=_DATASET),
        layer=0,
        data=(DataSpec(name=_DATASET, source="text", path=_DATASET),),
        crosscoder=variant.spec(sizes.num_latents),
        training=TrainingSpec(
            batch_size=sizes.batch_size,
            lr=sizes.lr,
            warmup_steps=sizes.warmup_steps,
            decay_share=sizes.decay_share,
            max_steps=sizes.steps,
            buffer_tokens=8 * sizes.batch_size,
            dead_after_tokens=sizes.dead_after_tokens,
            seed=planted.seed,
            log_every=sizes.steps,
            checkpoint_every=sizes.steps + 1,
        ),
    )
    width = planted.spec.d_model
    source = PlantedSource(planted, sizes.steps * sizes.batch_size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        return train(recipe, [source], (width, width), Path(folder), silent).crosscoder


@torch.no_grad()
def measure(crosscoder: Crosscoder, planted: Planted, num_tokens: int) -> tuple[score.Measured, dict[str, float]]:
    """The results of the analysis on held-out tokens: columns of every latent, and the quality figures."""
    spec = AnalysisSpec(max_tokens=num_tokens)
    moments, quality = Moments(crosscoder, spec.num_shards, 1), Quality(crosscoder)
    for intake in blocks(crosscoder, planted.held_out(num_tokens), spec, [_DATASET]):
        moments.add(intake.block)
        quality.add(intake.block)
    shards, along = moments.shard_sums(), directions(crosscoder)
    sums, rel_norm = shards.total(), geometry(crosscoder).rel_norm.double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        found, errors = jackknife(shards, lambda each: estimates(each, along))
        # The bias of a dictionary of differences is not part of a model's activation.
        target = "act" if crosscoder.streams.is_difference else "act_no_bias"
        ratio = found[beta_column("", target, "base")] / found[beta_column("", target, "chat")]
    measured = score.Measured(
        rows=crosscoder.W_dec[:, crosscoder.streams.columns(crosscoder.d_model)],
        living=sums.count > 0,
        rel_norm=rel_norm,
        nu_err=found["nu_err"],
        nu_rec=found["nu_rec"],
        mirror_nu_err=found["mirror_nu_err"],
        beta_ratio=ratio,
        is_supported=supported(
            found
            | {f"{name}_se": error for name, error in errors.items()}
            | {"rel_norm": rel_norm, "num_active": sums.count, "num_texts": moments.num_texts()}
        ),
    )
    return measured, quality.metrics()


def supported(figures: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """[latent] whether the verdict is "supported" (math §6). Causal effects are not measured here."""
    rel_norm, num_active = figures["rel_norm"], figures["num_active"]
    is_difference = bool(np.isnan(rel_norm).all())
    named = difference_classes(figures["beta_ratio"], num_active) if is_difference else classes(rel_norm, num_active)
    numbers = {str(each): number for number, each in enumerate(LatentClass, 1)}
    undefined = np.full(len(rel_norm), np.nan)
    told = {name: figures.get(name, undefined) for name in FIGURES}
    verdicts, _ = judged(told | {"latent_class": np.array([numbers[name] for name in named])})
    return verdicts == list(Verdict).index(Verdict.SUPPORTED) + 1
