"""Adam's step by Triton's kernels against torch's Adam on gradients that are made, and whole steps of each dictionary.

test_adam.py runs this file in processes of their own, as tests/worker/dictionary/test_kernels.py does with its file.
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.sparse import by_latent, flat_indices, sparse_code
from crosscope_worker.training import active_code, adam, adam_triton
from crosscope_worker.training.adam import Adam
from crosscope_worker.training.entry_sums import EntrySums
from crosscope_worker.training.trainer import Trainer

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SIZES = [(1, 1, (1,)), (6, 5, (3, 4)), (2, 2, (700, 500))]
"""Batch, latents, widths of the parts: below, beside and above the tiles' sizes."""
CASES = [(torch.float32, 0.7), (torch.bfloat16, None)]
STEPS = 3 if INTERPRETED else 6
"""The interpreter takes milliseconds a program."""


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(adam, "_kernels", lambda weight: adam_triton)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def sums_of(batch: int, latents: int, parts: tuple[int, ...], dtype: torch.dtype, seed: int) -> EntrySums:
    """A gradient of entries alone, or with own rows and further rows, by the seed."""
    code = normal(batch, latents, seed=seed)
    code = sparse_code(flat_indices(code > 0.3), code)
    sums = EntrySums(by_latent(code, latents), code.values, normal(batch, sum(parts), dtype=dtype, seed=seed), parts)
    if seed % 2:
        sums.own = normal(len(parts), latents, seed=2)
    if seed < 2:
        some = torch.arange(0, latents, 2, device=DEVICE)
        sums.latents, sums.rows = some, normal(len(some), sum(parts), seed=3)
    return sums


@pytest.mark.parametrize(("batch", "latents", "parts"), SIZES)
@pytest.mark.parametrize(("dtype", "limit"), CASES)
def test_steps_equal_torchs_adam(
    batch: int, latents: int, parts: tuple[int, ...], dtype: torch.dtype, limit: float | None
):
    ours = {"row": normal(latents, sum(parts)), "bias": normal(latents)}
    theirs = {name: tensor.clone() for name, tensor in ours.items()}
    one, optimiser = Adam(ours, limit), torch.optim.Adam(theirs.values())
    copies = one.rounded("row", torch.bfloat16)
    for seed in range(STEPS):
        sums, bias, lr = sums_of(batch, latents, parts, dtype, seed), normal(latents, seed=seed), 1e-2 / (1 + seed)
        theirs["row"].grad, theirs["bias"].grad = sums.made(theirs["row"]), bias.clone()
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), limit)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.step()
        one.step({"row": sums, "bias": bias}, lr)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-6, atol=1e-6)
        for key, value in optimiser.state[weight].items():
            torch.testing.assert_close(one.tensors()[f"{name}.{key}"].cpu(), value.cpu(), rtol=2e-6, atol=1e-7)
    if not INTERPRETED:
        assert one.rounded("row", torch.bfloat16) is copies
        assert torch.equal(copies, ours["row"].bfloat16())


def test_what_lies_outside_the_blocks_stays():
    weight = normal(5, 12)
    before, blocks = (
        weight.clone(),
        ((slice(0, 2), slice(0, 5)), (slice(2, 2), slice(0, 12)), (slice(2, 5), slice(5, 12))),
    )
    inside = torch.zeros(5, 12, dtype=torch.bool, device=DEVICE)
    for rows, columns in blocks:
        inside[rows, columns] = True
    sums = sums_of(9, 5, (5, 7), torch.float32, 1)
    expected = (sums.made(weight) * inside).norm()
    kernels = adam._kernels(weight)
    assert kernels is not None
    torch.testing.assert_close(kernels.norm(sums, weight, blocks), expected, rtol=1e-6, atol=0)
    Adam({"row": weight}, 1.0, blocks).step({"row": sums}, 1e-2)
    assert torch.equal(weight[~inside], before[~inside])
    assert bool((weight != before)[inside].all())


def test_equal_inputs_give_equal_bits():
    found = []
    for _ in range(2):
        weight = normal(3, 40)
        Adam({"row": weight}, 0.1).step({"row": sums_of(20, 3, (20, 20), torch.bfloat16, 1)}, 1e-2)
        found.append(weight)
    assert torch.equal(*found)


def test_a_device_on_which_they_agree_takes_them():
    one = Adam({"row": normal(3, 5), "bias": normal(3)}, None)
    assert one.takes_sums(torch.float32)
    assert one.takes_sums(torch.bfloat16)


DICTIONARIES: list[dict[str, Any]] = [
    {"variant": "batch_topk", "k": 3},
    {"variant": "topk", "k": 3},
    {"variant": "l1", "mu": 0.03, "code_normalisation": "mixed"},
    {"variant": "jumprelu", "mu": 0.03, "initial_threshold": 0.1, "bandwidth": 0.1},
    {"variant": "dfc", "k": 3, "num_base_only": 5, "num_chat_only": 4},
    {"variant": "delta", "k": 2, "num_delta": 6, "k_delta": 1, "delta_weight": 0.7},
    {"variant": "diff_sae", "k": 3},
    {"variant": "designated_shared", "mu": 0.03, "num_shared": 5, "shared_penalty": 0.2},
    {"variant": "matryoshka", "k": 3},
]
"""The last two make their gradients: rows are tied, and the code is in pieces."""
TRIED = [each for each in DICTIONARIES if not INTERPRETED or each["variant"] in ("l1", "dfc")]


@pytest.mark.parametrize("options", TRIED, ids=lambda options: options["variant"])
@torch.no_grad()
def test_a_training_is_the_same_whether_gradients_are_made(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]):
    monkeypatch.setattr(active_code, "dense_above", lambda device, dtype: 2.0)
    # Most latents are dead after a step, so that the auxiliary loss adds rows.
    training = TrainingSpec(batch_size=16, dead_after_tokens=16, max_grad_norm=0.05, warmup_steps=0)
    found = []
    for takes in (True, False):
        monkeypatch.setattr(Adam, "takes_sums", lambda self, dtype, takes=takes: takes)
        trainer = Trainer(dictionary(num_latents=12, **options), training, (6, 6), DEVICE)
        outcomes = [trainer.step(trainer.inputs(normal(16, 12, seed=seed)), 3e-3) for seed in range(STEPS - 1)]
        found.append((trainer, [outcome.loss for outcome in outcomes]))
        unmade = isinstance(outcomes[-1].gradients.encoder, EntrySums)
        assert unmade == (takes and options["variant"] not in ("designated_shared", "matryoshka"))
    (ours, losses), (theirs, expected) = found
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, tensor in theirs.tensors().items():
        torch.testing.assert_close(
            ours.tensors()[name], tensor, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
