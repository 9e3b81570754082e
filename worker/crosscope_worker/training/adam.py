"""Adam on all learnt tensors, with clipping by the norm of all gradients (math §3). Knows no loss and no variant.

Gradients that are made go to torch's fused Adam. Those that are not are summed, clipped and applied in one pass a
matrix by Triton's kernels on CUDA; elsewhere they are made first. Both keep torch's state, so a checkpoint does not
know which was taken.
"""

import importlib
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from crosscope_worker.dictionary import sparse
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.training.entry_sums import EntrySums, RowGradient
from crosscope_worker.work import is_out_of_memory

Block = tuple[slice, slice]
"""Rows and columns in which weights exist."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""The state of a learnt tensor that has its shape, by torch's names."""
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_CLOSE = 1e-4
"""How far the kernels' step may be from torch's on a few numbers, as a share of the learning rate."""


class Adam:
    """The optimiser of a training."""

    def __init__(
        self,
        learnt: Mapping[str, Tensor],
        max_norm: float | None,
        blocks: Sequence[Block] = ((slice(None), slice(None)),),
        ranks: Ranks = ALONE,
        whole: Collection[str] = (),
    ) -> None:
        """`learnt` are moved in place. Gradients that are not made count in `blocks` alone.

        Each of several `ranks` moves its own rows; what `whole` names, all of them have and move alike.
        """
        self._learnt = dict(learnt)
        self._max_norm = max_norm
        self._blocks = blocks
        self._ranks = ranks
        self._whole = whole
        self._torch = torch.optim.Adam(self._learnt.values(), betas=(_BETA1, _BETA2), eps=_EPS, fused=True)
        self._steps = 0
        self._rounded: dict[str, tuple[Tensor, int]] = {}
        """bfloat16 copies by name, each with the version of the weights that it is a copy of."""
        self._takes_sums: dict[torch.dtype, bool] = {}

    def takes_sums(self, dtype: torch.dtype) -> bool:
        """Whether gradients should come as EntrySums of this data type: where the kernels run and agree with torch.

        They are tried on a few numbers once; if they fail, a RuntimeWarning says why, and torch's Adam is taken.
        """
        if dtype not in self._takes_sums:
            weight = max(self._learnt.values(), key=lambda each: each.dim())
            self._takes_sums[dtype] = _kernels(weight) is not None and self._agrees(dtype, weight.device)
        return self._takes_sums[dtype]

    def _agrees(self, dtype: torch.dtype, device: torch.device) -> bool:
        try:
            worst = _difference(dtype, device)
        except Exception as error:  # Whatever the compiler or the driver says, the training goes on without them.
            return self._without_kernels(error)
        if not worst <= _CLOSE:
            return self._without_kernels(f"they are off by {worst:.1g} learning rates on a few numbers")
        return True

    def _without_kernels(self, reason: object) -> bool:
        if isinstance(reason, Exception) and is_out_of_memory(reason):
            raise reason
        said = " ".join(str(reason).split())[:300]
        warnings.warn(f"Adam's kernels cannot be used, torch's take longer: {said}", RuntimeWarning, stacklevel=4)
        return False

    def rounded(self, name: str, dtype: torch.dtype) -> Tensor:
        """The learnt tensor of a name in a data type; one in bfloat16 is kept on CUDA, and steps keep it up to date."""
        weight = self._learnt[name]
        if dtype != torch.bfloat16 or not weight.is_cuda:
            return weight.to(dtype)
        copy, version = self._rounded.get(name, (None, -1))
        if copy is None or version != weight._version:
            copy = weight.to(dtype) if copy is None else copy.copy_(weight)
            self._rounded[name] = copy, weight._version
        return copy

    def step(self, gradients: Mapping[str, RowGradient], lr: float) -> None:
        """Moves all learnt tensors by the gradients of the same names; those may be changed."""
        self._steps += 1
        gradients = {name: self._made_without_kernels(name, gradients[name]) for name in self._learnt}
        scale = self._scale(gradients)
        for name, weight in self._learnt.items():
            gradient = gradients[name]
            if isinstance(gradient, EntrySums):
                self._move(name, gradient, scale, lr)
                weight.grad = None
            else:
                weight.grad = gradient
                self._rounded.pop(name, None)
        if scale is not None:
            # The fused optimiser divides gradients while it reads them, so clipping needs no pass of its own.
            self._torch.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        for group in self._torch.param_groups:
            group["lr"] = lr
        self._torch.step()

    def _made_without_kernels(self, name: str, gradient: RowGradient) -> RowGradient:
        weight = self._learnt[name]
        if isinstance(gradient, Tensor) or _kernels(weight) is not None:
            return gradient
        return gradient.made(weight)

    def _scale(self, gradients: Mapping[str, RowGradient]) -> Tensor | None:
        """The number by which gradients are divided; None where they are not clipped."""
        if self._max_norm is None:
            return None
        norms = {name: self._norm(name, gradient) for name, gradient in gradients.items()}
        return (self._joint(norms) / self._max_norm).clamp_min_(1.0)

    def _joint(self, norms: Mapping[str, Tensor]) -> Tensor:
        """The norm of all gradients on all ranks, from this rank's norms by name."""
        if self._ranks.size == 1:
            return torch.stack(list(norms.values())).norm()
        own = [self._ranks.once(norm) if name in self._whole else norm for name, norm in norms.items()]
        return self._ranks.sum(torch.stack(own).square().sum(dtype=torch.float64)).sqrt().float()

    def _norm(self, name: str, gradient: RowGradient) -> Tensor:
        if isinstance(gradient, Tensor):
            return gradient.norm()
        weight = self._learnt[name]
        kernels = _kernels(weight)
        assert kernels is not None
        return kernels.norm(gradient, weight, self._blocks)

    def _move(self, name: str, gradient: EntrySums, scale: Tensor | None, lr: float) -> None:
        """Moves a tensor by a gradient that is not made."""
        weight = self._learnt[name]
        kernels, state = _kernels(weight), self._state_of(weight)
        assert kernels is not None
        rounded = self._rounded[name][0] if name in self._rounded else None
        root = math.sqrt(1 - _BETA2**self._steps)
        rates = kernels.Rates(lr / (1 - _BETA1**self._steps), root, _BETA1, _BETA2, _EPS)
        moments = kernels.Moments(state["exp_avg"], state["exp_avg_sq"], rounded)
        kernels.step(gradient, weight, moments, rates, weight.new_ones(()) if scale is None else scale, self._blocks)
        state["step"] += 1
        torch.autograd.graph.increment_version(weight)
        if rounded is not None:
            self._rounded[name] = rounded, weight._version

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """Torch's state of a learnt tensor, made as torch makes it before the first step."""
        state = self._torch.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state |= {moment: torch.zeros_like(weight) for moment in MOMENTS}
        return state

    def tensors(self) -> dict[str, Tensor]:
        """The state by name: `NAME.step`, `NAME.exp_avg` and `NAME.exp_avg_sq` of each learnt tensor."""
        states = {name: self._torch.state[weight] for name, weight in self._learnt.items()}
        return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from a copy of what `tensors` gave, of any device."""
        for name, weight in self._learnt.items():
            keys = {key: key.removeprefix(f"{name}.") for key in tensors if key.startswith(f"{name}.")}
            self._torch.state[weight] = {key: tensors[full].to(weight.device, copy=True) for full, key in keys.items()}
            self._steps = int(tensors.get(f"{name}.step", 0))


def _kernels(weight: Tensor) -> ModuleType | None:
    """`adam_triton` if its kernels take these weights (float32 on CUDA), else None."""
    takes = weight.dtype == torch.float32 and sparse.kernels_for(weight) is not None
    return importlib.import_module("crosscope_worker.training.adam_triton") if takes else None


def _difference(dtype: torch.dtype, device: torch.device) -> float:
    """How far two steps of the kernels lie from torch's on a few numbers, in learning rates."""
    draw = torch.Generator().manual_seed(0)
    code = sparse.sparse_code(torch.arange(0, 32, 3).to(device), torch.rand(8, 4, generator=draw).to(device))
    order = sparse.by_latent(code, 4)
    tokens = torch.randn(8, 48, generator=draw).to(device, dtype)
    start = torch.randn(4, 48, generator=draw).to(device)
    own, latents, rows = start[:2, :4].contiguous(), torch.tensor([1, 3]).to(device), start[2:].clone()
    sums = [EntrySums(order, code.values, tokens, (24, 24))]
    sums.append(EntrySums(order, code.values, tokens, (24, 24), own, latents, rows))
    ours, theirs = start.clone(), start.clone()
    one, other = Adam({"rows": ours}, 0.5), Adam({"rows": theirs}, 0.5)
    copy = one.rounded("rows", torch.bfloat16)
    for each in sums:
        one.step({"rows": each}, 1.0)
        other.step({"rows": each.made(theirs)}, 1.0)
    if copy.data_ptr() == one.rounded("rows", torch.bfloat16).data_ptr() and not torch.equal(copy, ours.bfloat16()):
        return math.inf
    return float((ours - theirs).abs().max())
