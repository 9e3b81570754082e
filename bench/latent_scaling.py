"""Latent scaling (math §4): every latent, target and direction in one pass, against a dense pass per target.

Ours is the encoding and `Moments.add`, which sums for all targets and both directions. The reference follows the
definition. For each of the eight targets of one direction, a pass over the tokens encodes densely, builds the target,
projects it on every latent's row by one matrix product, and sums `f <Y, v>` and `f²` for all latents. The latent's own
part of the error, `sum f² <D_j, v_j>`, is added after the pass. Both sides measure all latents on all tokens.
"""

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.material import DATASETS, QUICK, AnalysisSizes, crosscoder, held_out
from bench.rows import Figure, Row, Target
from bench.timing import Ratio, interleave
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_proto.scaling_columns import SCALING_DIRECTIONS, beta_column
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.intake import blocks
from crosscope_worker.analysis.moments import Moments
from crosscope_worker.analysis.scaling import directions as decoder_products
from crosscope_worker.analysis.scaling import estimates
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.dictionary.crosscoder import Crosscoder

TARGETS = tuple((target, side) for target in ("act", "act_no_bias", "rec", "err") for side in (BASE, CHAT))
BATCH = 1024
"""Tokens a batch of the reference."""


def rows(quick: bool) -> Iterator[Row]:
    """One row: microseconds per latent and 1 000 tokens, for all targets."""
    sizes = QUICK if quick else AnalysisSizes()
    model, harvested = crosscoder(sizes), held_out(sizes)
    spec = AnalysisSpec(max_tokens=10 * len(harvested.x))
    num_active = len(model.encode_sparse(harvested.x[:BATCH]).values) / min(BATCH, len(harvested.x))
    with torch.inference_mode():
        beta_difference = difference(model, harvested, spec)
        contestants = {
            "ours": lambda: one_pass(model, harvested, spec),
            "dense": lambda: [pass_of(model, harvested.x, *each) for each in TARGETS],
        }
        took = interleave(contestants, sizes.rounds)
    thousands = len(harvested.x) / 1000
    cost = {who: 1e6 * statistics.median(seconds) / sizes.num_latents / thousands for who, seconds in took.items()}
    yield Row(
        name="latent_scaling",
        case="all targets, both directions",
        sizes=sizes.described()
        | {"tokens": len(harvested.x), "active_a_token": num_active, "beta_difference": beta_difference},
        ours=Figure(cost["ours"], "us/latent/1000 tokens"),
        reference=Figure(cost["dense"], "us/latent/1000 tokens", f"{len(TARGETS)} dense passes, one direction"),
        ratio=Ratio.of(took["dense"], took["ours"]),
        targets=() if quick else (Target("ours", "at_most", 20.0),),
    )


def one_pass(model: Crosscoder, harvested: Harvest, spec: AnalysisSpec) -> Moments:
    """All sums of all latents, as the analysis computes them."""
    moments = Moments(model, spec.num_shards, len(DATASETS))
    for intake in blocks(model, [harvested], spec, DATASETS):
        moments.add(intake.block)
    return moments


def pass_of(model: Crosscoder, tokens: Tensor, target: str, side: int) -> Tensor:
    """beta of a target in one model along the chat rows, [latent] float64, from one pass over `tokens`."""
    directions, rows, bias = model.decoder(CHAT), model.decoder(side), model.b_dec[model.model_slice(side)]
    above, squared = torch.zeros(2, model.num_latents, dtype=torch.float64)
    for x in tokens.split(BATCH):
        code = model.encode(x)
        y = model.scale_inputs(x)[:, model.model_slice(side)]
        if target == "act_no_bias":
            y = y - bias
        elif target == "rec":
            y = torch.addmm(bias, code, rows)
        elif target == "err":
            y = y - torch.addmm(bias, code, rows)
        above += (code * (y @ directions.T)).sum(0, dtype=torch.float64)
        squared += code.square().sum(0, dtype=torch.float64)
    if target == "err":
        above += squared * torch.linalg.vecdot(rows.double(), directions.double())
    return above / (squared * directions.double().square().sum(1))


def difference(model: Crosscoder, harvested: Harvest, spec: AnalysisSpec) -> float:
    """The largest difference between ours and the reference over all targets and latents."""
    found = estimates(one_pass(model, harvested, spec).shard_sums().total(), decoder_products(model))
    prefix = next(prefix for prefix, name in SCALING_DIRECTIONS.items() if name == MODEL_NAMES[CHAT])
    names = [beta_column(prefix, target, MODEL_NAMES[side]) for target, side in TARGETS]
    ours = torch.stack([torch.from_numpy(found[name]) for name in names])
    dense = torch.stack([pass_of(model, harvested.x, *each) for each in TARGETS])
    assert torch.equal(ours.isnan(), dense.isnan()), "a coefficient is undefined on one side only"
    return float((ours - dense)[~ours.isnan()].abs().max())
