"""Latent scaling (math §4): every latent, target and direction in one pass, against a dense pass per target.

Ours is encoding and `Moments.add`, which sum for all targets and both directions. The reference takes the definition:
for each of the eight targets of one direction it encodes densely and sums `f <Y, v>` and `f²` for some latents. Its
encoding is shared out among all latents, so that the sample's size does not matter.
"""

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.material import DATASETS, QUICK, AnalysisSizes, crosscoder, held_out
from bench.measure import Ratio, interleave
from bench.rows import Figure, Row, Target
from crosscope_proto.recipe import AnalysisSpec
from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.intake import blocks
from crosscope_worker.analysis.moments import Moments
from crosscope_worker.crosscoder import Crosscoder

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

    def encodings() -> None:
        for _ in range(2 * len(TARGETS)):
            for x in harvested.x.split(BATCH):
                model.encode(x)

    def passes() -> None:
        for target in TARGETS:
            for side in (BASE, CHAT):
                pass_of(model, harvested.x, target, side, sample)

    with torch.inference_mode():
        took = interleave({"ours": one_pass, "encode": encodings, "passes": passes}, sizes.rounds)
    thousands = len(harvested.x) / 1000
    ours = [1e6 * seconds / sizes.num_latents / thousands for seconds in took["ours"]]
    reference = [
        1e6 * ((total - encode) / SAMPLE + encode / sizes.num_latents) / thousands
        for total, encode in zip(took["passes"], took["encode"], strict=True)
    ]
    yield Row(
        name="latent_scaling",
        case="all targets, both directions",
        sizes=sizes.described() | {"tokens": len(harvested.x), "active_a_token": num_active, "sample": SAMPLE},
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
    """beta of a target in one model along the chat rows of `latents`, [latent], by one pass over `tokens`."""
    directions = model.decoder(CHAT)[latents].double()
    rows, bias = model.decoder(side)[latents], model.b_dec[model.model_slice(side)]
    above, squared = torch.zeros(len(latents)).double(), torch.zeros(len(latents)).double()
    for x in tokens.split(BATCH):
        dense = model.encode(x)
        code = dense[:, latents]
        activation = model.scale_inputs(x)[:, model.model_slice(side)]
        reconstruction = dense @ model.decoder(side) + bias
        for latent, direction in enumerate(directions):
            f = code[:, latent]
            match target:
                case "act":
                    y = activation
                case "act_no_bias":
                    y = activation - bias
                case "rec":
                    y = reconstruction
                case _:
                    y = activation - reconstruction + f[:, None] * rows[latent]
            above[latent] += f.double() @ (y.double() @ direction)
            squared[latent] += f.double() @ f.double()
    return above / (squared * directions.square().sum(1))
