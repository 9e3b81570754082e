"""Trainings whose latents are shared by two and by three real ranks, against one rank that holds them all.

All cases run in one start of three processes. 25 latents are shared unevenly by both numbers of ranks, and the parts of
dictionaries end in the middle of a rank, or leave a rank without a latent of theirs.
"""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.sparse import batch_topk
from crosscope_worker.dictionary.sparsifier import largest
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.training import TrainingError, active_code, start
from crosscope_worker.training.adam import Adam
from crosscope_worker.training.choices import batch_choice, token_choice
from crosscope_worker.training.held import Held
from crosscope_worker.training.start import initial_weights
from crosscope_worker.training.trainer import Counters, Trainer
from crosscope_worker.training.variants import variant_of

LATENTS, BATCH, STEPS, MIDDLE = 25, 40, 30, 20
DECOUPLED = {"code_normalisation": "decoupled"}
OPTIONS: dict[str, dict[str, Any]] = {
    "batch_topk": {"k": 2},
    "l1": {"mu": 0.02, "squared": True, "cross_term": -0.5, "code_normalisation": "mixed"},
    "topk": {"k": 2, **DECOUPLED},
    "matryoshka": {"k": 3, "prefixes": [3, 6, 15, LATENTS]},
    "jumprelu": {"mu": 0.05, "initial_threshold": 1.2, "bandwidth": 0.6},
    "dfc": {"k": 2, "num_base_only": 4, "num_chat_only": 10, **DECOUPLED},
    "designated_shared": {"mu": 0.02, "num_shared": 10, "shared_penalty": 0.2},
    "diff_sae": {"k": 2},
    "delta": {"k": 2, "num_delta": 7, "k_delta": 1, "delta_weight": 0.5},
}
TRAINING: dict[str, dict[str, Any]] = {
    "topk": {"max_grad_norm": None},
    "jumprelu": {"sparsity_warmup_steps": 22},
    "dfc": {"sparsity_warmup_steps": 22, "k_start": 9},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: ({"variant": name, **own}, TRAINING.get(name, {})) for name, own in OPTIONS.items()},
    "float32": ({"variant": "batch_topk", "k": 2}, {"dtype": "float32"}),
    "bfloat16": ({"variant": "batch_topk", "k": 2}, {"dtype": "bfloat16"}),
}
"""Fields of the dictionary and of its training, in float64 unless said otherwise."""
CALLS = {"l1": 3, "designated_shared": 3, "jumprelu": 4, "matryoshka": 9, "topk": 6, "dfc": 9, "delta": 8}
"""Collective calls of a step without dead latents: two for each choice within a batch, one for each within tokens, one
for each reconstruction, and one each for the number of dead latents, the figures and the norm. Others have 6."""
Numbers = dict[str, Any]


@contextmanager
def float64() -> Generator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def trainer(case: str, ranks: Ranks) -> Trainer:
    options, own = CASES[case]
    shared: dict[str, Any] = {"batch_size": BATCH, "warmup_steps": 4, "max_grad_norm": 0.5}
    shared |= {"dead_after_tokens": 3 * BATCH, "aux_weight": 0.1}
    spec, training = dictionary(num_latents=LATENTS, **options), TrainingSpec(**shared | own)
    if "dtype" in own:
        return Trainer(spec, training, (6, 6), ranks=ranks)
    with float64():
        object.__setattr__(training, "dtype", "float64")
        return Trainer(spec, training, (6, 6), ranks=ranks)


def batches(dtype: torch.dtype) -> list[Tensor]:
    """Sparse combinations of directions; half the tokens of a batch stand in it twice, so that entries tie."""
    draw = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(12, 12, generator=draw), dim=1)
    found = []
    for _ in range(STEPS):
        active = torch.rand(BATCH, 12, generator=draw) < 0.2
        tokens = 3 * (active * (1 + torch.rand(BATCH, 12, generator=draw))) @ directions
        tokens[1::4] = tokens[::4]
        found.append(tokens.to(dtype))
    return found


class Calls:
    """Counts the collective calls of this process."""

    def __init__(self) -> None:
        self.number = 0
        for name in ("all_reduce", "all_gather"):
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.number += 1
            return call(*args, **options)

        return counted


def trained(one: Trainer, first: int, last: int, calls: Calls | None = None) -> list[Numbers]:
    """The figures of each step, which all ranks have."""
    figures: list[Numbers] = []
    for tokens in batches(one.weights.b_dec.dtype)[first:last]:
        before = calls.number if calls else 0
        step = one.step(one.inputs(tokens), 1e-3)
        taken = calls.number - before if calls else 0
        numbers = [step.loss, *step.smallest_kept, *step.squared_error, *one.running_thresholds()]
        figures.append({"numbers": numbers, "active": step.num_active, "calls": taken})
        if one.counters.step % 5 == 0:
            figures[-1]["dead"] = one.dead_share()
            figures[-1]["norms"] = one.relative_norm_bins() if one.variant.streams.compares_rows else []
    return figures


def whole(one: Trainer) -> dict[str, Tensor]:
    """A copy of the trainer's tensors with the rows of all ranks, on every rank."""
    every, names = one.variant.ranks.everyone(one.tensors()), one.per_latent()
    return {
        name: torch.cat([each[name] for each in every]) if name in names else own.clone()
        for name, own in every[0].items()
    }


def plain(counters: Counters) -> Numbers:
    """The counters as a checkpoint has them."""
    return json.loads(json.dumps(asdict(counters)))


@torch.no_grad()
def first_part(case: str, ranks: Ranks, calls: Calls | None = None) -> Numbers:
    """A training up to the middle."""
    one = trainer(case, ranks)
    return {"figures": trained(one, 0, MIDDLE, calls), "tensors": whole(one), "counters": plain(one.counters)}


@torch.no_grad()
def second_part(case: str, ranks: Ranks, middle: Numbers) -> Numbers:
    """What follows a state in the middle, whose rows are handed out again."""
    one = trainer(case, ranks)
    names, saved = one.per_latent(), middle["tensors"]
    own = {name: each[one.latents] if name in names else each for name, each in saved.items()}
    one.restore(own, middle["counters"])
    return {"figures": trained(one, MIDDLE, STEPS), "tensors": whole(one)}


def check_choices(ranks: Ranks) -> None:
    """Whole numbers, so that many tie: what the ranks choose together is what one chooses of everything."""
    draw, good = torch.Generator().manual_seed(0), 0
    for trial in range(10):
        latents, k = int(torch.randint(3, 12, (), generator=draw)), 1 + trial % 4
        held, among = Held(latents, ranks), (slice(0, latents), slice(1, 3), slice(2, latents))[trial % 3]
        pre = torch.randint(-3, 5, (7, latents), generator=draw).float()
        bias, norms = torch.ones(latents), torch.randint(0, 3, (latents,), generator=draw).float()
        own, expected = held.latents, batch_topk(pre, bias, norms, 7 * k, 0.0, among)
        for floor in (0.0, 0.8 * float(expected.smallest), 9.0):
            found = batch_choice(pre[:, own], bias[own], norms[own], 7 * k, floor, among, held)
            places = found.flat // len(held) * latents + found.flat % len(held) + own.start
            assert torch.equal(ranks.join(places).sort().values, expected.flat), (trial, floor)
            assert found.smallest == expected.smallest
            good += int(ranks.sum(found.sure.long())) == ranks.size
        mask = token_choice((pre.relu() * norms)[:, own], k, latents, ranks)
        assert torch.equal(ranks.join(mask.T.long()).T.bool(), largest(pre.relu() * norms, k)), trial
    assert good == 30


def rank_main(rank: int, folder: Path) -> None:
    """Three ranks, and then the first two of them. Both go on from where three were in the middle."""
    torch.set_num_threads(1)
    active_code.DENSE_ABOVE = dict.fromkeys(active_code.DENSE_ABOVE, 0.5)  # of l1's first steps
    calls, middles = Calls(), {}
    for size in (3, 2):
        if rank >= size:
            return
        meet, patience = f"file://{folder}/meet-{size}", timedelta(minutes=3)
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size, timeout=patience)
        ranks = Ranks.of_process_group()
        # Gradients come both ways, as sums and made; what makes sums on the CPU knows no blocks.
        Adam.takes_sums = lambda self, dtype, size=size: size == 3 and len(self._blocks) == 1
        check_choices(ranks)
        found = {case: {"first": first_part(case, ranks, calls)} for case in CASES}
        middles = middles or {case: each["first"] for case, each in found.items()}
        for case, middle in middles.items():
            found[case]["second"] = second_part(case, ranks, middle)
        torch.save(found, folder / f"{size}-{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    """The courses of all cases by `SIZE-RANK`."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, (folder,), nprocs=3)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


def assert_equal(case: str, course: Numbers, alone: Numbers) -> None:
    """Weights, Adam's state, counters of latents and the figures of every step are equal but for rounding.

    bfloat16 rounds more, where a number lies near the edge of two.
    """
    close = {"float32": 1e-6, "bfloat16": 3e-4}.get(case, 1e-9)
    assert course["tensors"].keys() == alone["tensors"].keys()
    for name, tensor in course["tensors"].items():
        torch.testing.assert_close(
            tensor, alone["tensors"][name], rtol=close, atol=close, msg=lambda m, n=name: f"{n}: {m}"
        )
    for step, (one, other) in enumerate(zip(course["figures"], alone["figures"], strict=True)):
        assert one["numbers"] == pytest.approx(other["numbers"], rel=close), step
        assert all(one.get(name) == other.get(name) for name in ("active", "dead", "norms")), step


@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_does(monkeypatch: pytest.MonkeyPatch, found: dict[str, Numbers], case: str):
    monkeypatch.setattr(active_code, "DENSE_ABOVE", dict.fromkeys(active_code.DENSE_ABOVE, 0.5))
    first = first_part(case, ALONE)
    second = second_part(case, ALONE, first)
    if trainer(case, ALONE).spec.revives:
        assert second["figures"][-1]["dead"] > 0  # so that some are revived
    for place, courses in found.items():
        assert_equal(case, courses[case]["first"], first)
        assert_equal(case, courses[case]["second"], second)
        for part, others in found[f"{place[0]}-0"][case].items():  # the same to the last bit
            assert courses[case][part]["figures"] == others["figures"], place
            assert torch.equal(courses[case][part]["tensors"]["b_dec"], others["tensors"]["b_dec"])
    assert_equal(case, second_part(case, ALONE, found["3-0"][case]["first"]), second)
    assert min(step["calls"] for step in found["3-0"][case]["first"]["figures"]) <= CALLS.get(case, 6)


def test_more_ranks_than_latents_are_refused():
    spec = dictionary(variant="l1", num_latents=3, mu=0.1)
    with pytest.raises(TrainingError, match=r"4 devices cannot share .*num_latents 3; set training.devices to 3 or"):
        Trainer(spec, TrainingSpec(), (2, 2), ranks=Ranks(0, 4))


@pytest.mark.parametrize("latents", [16, 35, 100])
def test_initial_weights_of_ranks_are_the_rows_of_one(monkeypatch: pytest.MonkeyPatch, latents: int):
    """Drawn in pieces, and by one call of torch."""
    spec = dictionary(variant="dfc", num_latents=latents, k=2, num_base_only=9, num_chat_only=5)
    one = initial_weights(variant_of(spec, (5, 7)), 3, "cpu")
    directions = torch.randn(latents, 7, generator=torch.Generator().manual_seed(3))
    expected = 0.4 * torch.nn.functional.normalize(directions, dim=1)
    assert torch.equal(one.decoder[14:, 5:], expected[14:])
    monkeypatch.setattr(start, "_DRAWN", 16)
    parts = [initial_weights(variant_of(spec, (5, 7), Ranks(rank, 3)), 3, "cpu") for rank in range(3)]
    for name in ("encoder", "b_enc", "decoder"):
        assert torch.equal(torch.cat([getattr(each, name) for each in parts]), getattr(one, name)), name
    assert all(torch.equal(each.b_dec, one.b_dec) for each in parts)
