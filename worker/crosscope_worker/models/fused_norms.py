"""Norms of a model's decoder layers by one kernel each, for as long as a context lasts.

transformers computes a root-mean-square norm in eight kernels, a third of all the time that Gemma 2's kernels take. A
norm is known by what it computes, tried on random numbers, not by its class. Does not know what is run meanwhile.
"""

import importlib
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_worker.models.pair import decoder_layers
from crosscope_worker.models.residual import standing_in

_ROWS = 32
_ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}
"""Largest relative difference of two roundings of one number: a unit in the last place, or some of them in float32."""

Forward = Callable[[Tensor], Tensor]

log = logging.getLogger(__name__)


class Form(NamedTuple):
    """How a class computes its norm."""

    eps: str
    """The attribute that holds what is added to the mean square."""
    offset: float
    """What is added to the weights."""
    rounds_first: bool
    """Whether values are rounded to their data type before the product with the weights."""


FORMS = (
    Form("eps", 1.0, rounds_first=False),
    Form("variance_epsilon", 0.0, rounds_first=True),
    Form("eps", 0.0, rounds_first=True),
    Form("eps", 0.0, rounds_first=False),
)
"""Gemma's, Llama's, and variants of others."""


class FusedNorms:
    """The norms in the decoder layers of some models up to one, as far as the kernel computes them."""

    def __init__(self, models: tuple[PreTrainedModel, ...], layer: int) -> None:
        """Tries the kernel on one norm of each class. Where it fails there are none, and a log line says why."""
        self._forwards: list[tuple[nn.Module, Forward]] = []
        try:
            self._forwards = list(_forwards(models, layer))
        except Exception as error:  # a kernel may fail in any way
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            log.warning("norms of models are not fused, and prompts are slower: %s", reason)

    def __len__(self) -> int:
        return len(self._forwards)

    @contextmanager
    def standing_in(self) -> Generator[None]:
        """Lets the norms run fused."""
        with ExitStack() as stack:
            for module, forward in self._forwards:
                stack.enter_context(standing_in(module, forward))
            yield


def _forwards(models: tuple[PreTrainedModel, ...], layer: int) -> Iterator[tuple[nn.Module, Forward]]:
    forms: dict[tuple[type[nn.Module], int, torch.dtype], Form | None] = {}
    for model in models:
        for module in decoder_layers(model)[: layer + 1].modules():
            weight = getattr(module, "weight", None)
            if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or weight.ndim != 1:
                continue
            key = type(module), len(weight), weight.dtype
            if key not in forms:
                forms[key] = _form(module, weight)
            if (form := forms[key]) is not None:
                yield module, _fused(module, weight, form)


def _fused(module: nn.Module, weight: Tensor, form: Form) -> Forward:
    kernel = importlib.import_module("crosscope_worker.models.rms_norm_triton")
    eps = float(getattr(module, form.eps))

    def forward(x: Tensor) -> Tensor:
        return kernel.rms_norm(x, weight, eps, form.offset, form.rounds_first)

    return forward


@torch.inference_mode()
def _form(module: nn.Module, weight: Tensor) -> Form | None:
    """The form in which the kernel gives what the module gives, up to one rounding; None: in no form."""
    kernel = importlib.import_module("crosscope_worker.models.rms_norm_triton")
    if weight.dtype not in _ROUNDING or len(weight) > kernel.WIDEST:
        return None
    draw = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(_ROWS, len(weight), generator=draw, device=weight.device)
    x = (x * torch.logspace(-3, 3, _ROWS, device=x.device)[:, None]).to(weight.dtype)  # eps matters in the first rows
    expected = module(x)
    for form in FORMS:
        if hasattr(module, form.eps):
            found = _fused(module, weight, form)(x)
            rtol = _ROUNDING[weight.dtype] * (2 if form.rounds_first else 1)
            if found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), rtol, 1e-30):
                return form
    return None
