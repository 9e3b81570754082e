"""Latent scaling (math §4): every latent, target and direction in one pass, against a dense pass per target.

Ours is encoding and `Moments.add`, which sum for all targets and both directions. The reference takes the definition:
for each of the eight targets of one direction it encodes densely and sums `f <Y, v>` and `f²` for some latents. What a
pass costs besides (encoding, reconstructing) is known from a pass for one latent and shared out among all of the
dictionary. Targets that are the same for all latents are projected by one matrix product; only the error, which has
each latent's own part put back, is built for one latent after the other.
"""

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.material import DATASETS, QUICK, AnalysisSizes, crosscoder, held_out
from bench.measure import Ratio, interleave
from bench.rows import Figure, Row, Target
from crosscope_proto.artefacts import SCALING_DIRECTIONS, beta_column
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.intake import blocks
from crosscope_worker.analysis.moments import Moments
from crosscope_worker.analysis.scaling import directions as decoder_products
from crosscope_worker.analysis.scaling import estimates
from crosscope_worker.crosscoder import Crosscoder
from crosscope_worker.harvest import Harvest

TARGETS = ("act", "act_no_bias", "rec", "err")
SAMPLE = 32
"""Latents that the reference is timed on."""
BATCH = 1024
"""Tokens a batch of the reference."""


def rows(quick: bool) -> Iterator[Row]:
    """One row: microseconds per latent and 1 000 tokens, for all targets."""
    sizes = QUICK if quick else AnalysisSizes()
    model, harvested = crosscoder(sizes), held_out(sizes)
    spec = AnalysisSpec(max_tokens=10 * len(harvested.x))
    sample = torch.linspace(0, sizes.num_latents - 1, SAMPLE).long()
    num_active = len(model.encode_sparse(harvested.x[:BATCH]).values) / min(BATCH, len(harvested.x))

    def one_pass() -> None:
        moments = Moments(model, spec.num_shards, len(DATASETS))
        for intake in blocks(model, [harvested], spec, DATASETS):
            moments.add(intake.block)

    def passes(latents: Tensor) -> None:
        for target in TARGETS:
            for side in (BASE, CHAT):
                pass_of(model, harvested.x, target, side, latents)

    with torch.inference_mode():
        beta_difference = difference(model, harvested, spec, sample)
        contestants = {"ours": one_pass, "one": lambda: passes(sample[:1]), "all": lambda: passes(sample)}
        took = interleave(contestants, sizes.rounds)
    thousands = len(harvested.x) / 1000
    ours = [1e6 * seconds / sizes.num_latents / thousands for seconds in took["ours"]]
    reference: list[float] = []
    for one, every in zip(took["one"], took["all"], strict=True):
        each = max(0.0, every - one) / (SAMPLE - 1)
        reference.append(1e6 * (each + max(0.0, one - each) / sizes.num_latents) / thousands)
    yield Row(
        name="latent_scaling",
        case="all targets, both directions",
        sizes=sizes.described()
        | {
            "tokens": len(harvested.x),
            "active_a_token": num_active,
            "sample": SAMPLE,
            "beta_difference": beta_difference,
        },
        ours=Figure(statistics.median(ours), "us/latent/1000 tokens"),
        reference=Figure(
            statistics.median(reference),
            "us/latent/1000 tokens",
            f"{2 * len(TARGETS)} dense passes, one direction",
        ),
        ratio=Ratio.of(reference, ours),
        targets=() if quick else (Target("ours", "at_most", 20.0),),
    )


def pass_of(model: Crosscoder, tokens: Tensor, target: str, side: int, latents: Tensor) -> Tensor:
    """beta of a target in one model along the chat rows of `latents`, [latent] float64, by one pass over `tokens`."""
    directions = model.decoder(CHAT)[latents].double()
    rows, bias = model.decoder(side)[latents], model.b_dec[model.model_slice(side)]
    above, squared = torch.zeros(2, len(latents), dtype=torch.float64)
    for x in tokens.split(BATCH):
        dense = model.encode(x)
        code = dense[:, latents]
        activation = model.scale_inputs(x)[:, model.model_slice(side)]
        if target in ("act", "act_no_bias"):
            y = activation - (bias if target == "act_no_bias" else 0)
            projections = y.double() @ directions.T
        else:
            reconstruction = dense @ model.decoder(side) + bias
            if target == "rec":
                projections = reconstruction.double() @ directions.T
            else:  # another one for each latent
                error = activation - reconstruction
                targets = (error + f[:, None] * row for f, row in zip(code.T, rows, strict=True))
                projections = torch.stack([y.double() @ v for y, v in zip(targets, directions, strict=True)], 1)
        above += (code.double() * projections).sum(0)
        squared += code.double().square().sum(0)
    return above / (squared * directions.square().sum(1))


def difference(model: Crosscoder, harvested: Harvest, spec: AnalysisSpec, latents: Tensor) -> float:
    """The largest difference between ours and the reference over all targets of `latents`."""
    moments = Moments(model, spec.num_shards, len(DATASETS))
    for intake in blocks(model, [harvested], spec, DATASETS):
        moments.add(intake.block)
    found = estimates(moments.shard_sums().total(), decoder_products(model))
    prefix = next(prefix for prefix, name in SCALING_DIRECTIONS.items() if name == MODEL_NAMES[CHAT])
    differences = [
        torch.from_numpy(found[beta_column(prefix, target, MODEL_NAMES[side])])[latents]
        - pass_of(model, harvested.x, target, side, latents)
        for target in TARGETS
        for side in (BASE, CHAT)
    ]
    return float(torch.stack(differences).abs().nan_to_num().max())
