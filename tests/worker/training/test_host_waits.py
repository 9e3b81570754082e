"""How often the host waits for the device in one step: counted where CUDA is, and on the CPU by a dispatch mode.

On the CPU the code for CUDA runs with plain torch in the place of the kernels. Every operation is counted that hands
the host a number, or whose shape the host must know.
"""

import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crosscope_proto.dictionaries import Known, dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary import sparse
from crosscope_worker.ranks import Ranks
from crosscope_worker.training import active_code, adam, objective
from crosscope_worker.training.entry_sums import EntrySums
from crosscope_worker.training.trainer import Trainer
from tests.worker.devices import needs_gpu

WAITS = {
    "batch_topk": 2,
    "l1": 2,
    "designated_shared": 2,
    "dfc": 2,
    "diff_sae": 2,
    "delta": 3,  # two budgets
    "topk": 3,  # ties within a token
    "jumprelu": 3,  # the entries near the thresholds
}
"""The number of active entries, and the figures of the step; what is beyond that is said. Matryoshka has more: its code
is cut into prefixes."""
OWN: dict[str, dict[str, Any]] = {
    "l1": {"mu": 0.1},
    "designated_shared": {"mu": 0.1, "num_shared": 4, "shared_penalty": 0.2},
    "dfc": {"k": 2, "num_base_only": 4, "num_chat_only": 4},
    "delta": {"k": 2, "num_delta": 4, "k_delta": 1, "delta_weight": 0.5},
    "jumprelu": {"mu": 0.1, "initial_threshold": 0.01, "bandwidth": 0.01},
}
WAITING = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "is_nonzero", "equal", "_unique2", "argwhere"}


def spec_of(variant: str) -> Known:
    return dictionary(variant=variant, num_latents=64, **OWN.get(variant, {"k": 2}))


class Waits(TorchDispatchMode):
    """Counts the operations that would make the host wait for CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(_is_mask(each) for each in args[1:])
        if name in WAITING or masked:
            self.found[name] += 1
        return func(*args, **kwargs or {})


def _is_mask(value: Any) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in several)


class Uncounted(objective.Counted):
    """Its number comes without a wait of its own, as that of CUDA does."""

    def __init__(self, mask: Tensor, ranks: Ranks) -> None:
        self._count = int(mask.numpy().sum())

    def by_rank(self) -> list[int]:
        return [self._count]


def _weighted_sums(indices: Tensor, rows: Tensor, starts: Tensor, weights: Tensor, *others: Any) -> Tensor:
    return sparse._bags(indices, rows, starts, weights)


def _entry_products(starts: Tensor, latents: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    counts = torch.diff(starts)
    of = torch.repeat_interleave(torch.arange(len(tokens)), counts, output_size=len(latents))
    return (tokens[of] * rows[latents]).sum(1)


def _norm(sums: EntrySums, weights: Tensor, *others: Any) -> Tensor:
    return sums.made(weights).norm()


ADAM = SimpleNamespace(norm=_norm, step=lambda *args: None, Rates=lambda *args: args, Moments=lambda *args: args)


def starts(variant: str, device: str) -> tuple[Trainer, Tensor]:
    """A trainer after three steps, which gave it guesses and some dead latents, and a batch."""
    training = TrainingSpec(batch_size=32, dead_after_tokens=40)
    trainer = Trainer(spec_of(variant), training, (8, 8), device)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(32, 16, generator=draw).to(device) for _ in range(4)]
    with torch.no_grad():
        for tokens in batches[:3]:
            trainer.step(trainer.inputs(tokens), 1e-4)
    trainer.since_fired[::3] = 40
    return trainer, trainer.inputs(batches[3])


@pytest.mark.parametrize("variant", WAITS)
@torch.no_grad()
def test_the_host_waits_seldom(monkeypatch: pytest.MonkeyPatch, variant: str):
    monkeypatch.setattr(active_code, "dense_above", lambda device, dtype: 2.0)
    trainer, x = starts(variant, "cpu")
    kernels = SimpleNamespace(
        weighted_sums=_weighted_sums, entry_products=_entry_products, DECODING={}, BY_LATENT={}, ENTRY_PRODUCTS={}
    )
    monkeypatch.setattr(sparse, "kernels_for", lambda *operands: kernels)
    monkeypatch.setattr(adam, "_kernels", lambda weight: ADAM)
    monkeypatch.setattr(adam.Adam, "takes_sums", lambda self, dtype: True)
    monkeypatch.setattr(objective, "Counted", Uncounted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(sparse, "_is_on_cpu", lambda tensor: False)
    monkeypatch.setattr(torch.Tensor, "tolist", _tolist)
    with Waits() as waits:
        trainer.step(x, 1e-4)
    assert sum(waits.found.values()) == WAITS[variant], waits.found


def _tolist(x: Tensor) -> Any:
    """As torch's, which on CUDA waits once for all numbers."""
    return x.reshape(-1)[0].item() and x.numpy().tolist()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("variant", WAITS)
@torch.no_grad()
def test_the_host_waits_seldom_for_a_gpu(monkeypatch: pytest.MonkeyPatch, variant: str):
    monkeypatch.setattr(active_code, "dense_above", lambda device, dtype: 2.0)
    trainer, x = starts(variant, "cuda")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.step(x, 1e-4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)]
    assert len(waits) <= WAITS[variant], waits
