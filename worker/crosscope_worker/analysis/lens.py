"""The logit lens: the tokens that a decoder row raises through a model's final norm and head (math §6).

The modules between the last decoder layer and the head are not known by name. So the model runs once on a few tokens,
and the modules that turn the last layer's output into the head's input are found by their values. If none do, the lens
is refused with the reason. Knows nothing about latents but their decoder rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crosscope_proto.roles import MODEL_NAMES
from crosscope_worker.analysis.geometry import CHUNK_BYTES
from crosscope_worker.analysis.largest import largest_products
from crosscope_worker.models.pair import decoder_layers, num_ids
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, probe_ids, standardised_error
from crosscope_worker.models.residual import stream
from crosscope_worker.work import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from crosscope_worker.models.pair import Pair

NUM_LOGIT_TOKENS = 8
_NUM_ORDERED = 64
"""The number of largest logits whose order is compared with the model's own."""
_PARALLEL = 0.999


class LensError(ValueError):
    """A model without a logit lens; the message names its class and says why."""


@dataclass(frozen=True, eq=False)
class Lens:
    """A model's final norm, or whatever does its work, and its head."""

    between: tuple[nn.Module, ...]
    """float32 copies of the modules between the last layer and the head, in order."""
    head: nn.Module
    vocabulary: int | None = None
    """Ids from here on do not count: a head may be padded beyond the tokenizer's vocabulary."""

    @torch.no_grad()
    def tokens(self, rows: Tensor, count: int = NUM_LOGIT_TOKENS) -> Tensor:
        """The token ids whose logits a decoder row raises most, `[latent, count]`, most first.

        `rows: [latent, d_model]`. Biases are left out, so every logit scales with the row, and the order does not
        depend on the row's length.
        """
        device = next(self.head.parameters()).device
        width = self.normed(rows[:1].float().to(device)).shape[-1]
        weights = _head_weights(self.head, width)[:, : self.vocabulary].T
        pieces = rows.split(max(1, CHUNK_BYTES // (4 * width)))
        normed = (self.normed(piece.to(device, torch.float32)) for piece in pieces)
        return torch.cat([largest_products(piece, weights, count)[0] for piece in normed])

    def normed(self, rows: Tensor) -> Tensor:
        """The output of the final norm for `rows: [row, d_model]` without its bias; each row up to a positive factor.

        A LayerNorm centres the row and multiplies it by the gain, an RMSNorm multiplies only. The norm itself is
        called, because some store the gain (Llama) and others the gain less one (Gemma).
        """
        return _through(self.between, rows) - _through(self.between, torch.zeros_like(rows[:1]))


def find_lenses(pair: "Pair | None") -> tuple[list[Lens | None], dict[str, str]]:
    """The lens of each model, base first, None without one; and the reasons, by "logit_lens_base" and so on."""
    lenses: list[Lens | None] = []
    reasons: dict[str, str] = {}
    for model, name in enumerate(MODEL_NAMES):
        try:
            lenses.append(None if pair is None else find_lens(pair.models[model], num_ids(pair.tokenizer)))
        except LensError as error:
            lenses.append(None)
            reasons[f"logit_lens_{name}"] = str(error)
    return lenses, reasons


@torch.no_grad()
def find_lens(model: "PreTrainedModel", vocabulary: int | None = None) -> Lens:
    """The lens of a model, which runs once on a few tokens to show what its head reads.

    Raises LensError if no called module turns the last layer's output into the head's input, or if the model's logits
    are not in the order that its head gives; torch's own error if memory runs out.
    """
    named = type(model).__name__
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise LensError(f"{named} has no output head")
    try:
        seen = _Seen(model, head)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise LensError(f"{named} cannot be run on token ids alone: {' '.join(str(error).split())[:200]}") from error
    if seen.last is None or seen.read is None:
        raise LensError(f"{named} does not call its {'last layer' if seen.last is None else 'head'} for a text")
    try:
        return replace(_lens(named, head, seen.last, seen.read, seen), vocabulary=vocabulary)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, LensError) or is_out_of_memory(error):
            raise
        raise LensError(f"{named}: its final norm cannot be called alone: {' '.join(str(error).split())}") from error


def _lens(named: str, head: nn.Module, last: Tensor, read: Tensor, seen: "_Seen") -> Lens:
    chain = next(_chains(last, read, seen.calls), None)
    if chain is None:
        raise LensError(
            f"{named}: no module that it calls turns the output of its last layer into the input of its head"
        )
    if not _in_same_order(seen.logits, seen.made):
        raise LensError(f"{named}: its logits are not in the order that its head gives them")
    between = tuple(deepcopy(module).float() for module in chain)
    if not _are_multiples(_through(between, last.float()), read.float()):
        raise LensError(f"{named}: its final norm gives another output for the same values when it is called alone")
    lens = Lens(between, head)
    if not _ignores_length(lens, last.shape[-1], last.device):
        raise LensError(f"{named}: the modules before its head are no norm, so the length of a row would matter")
    return lens


class _Seen:
    """The calls of one run of the model: the last layer's output, the calls between it and the head, and the head."""

    def __init__(self, model: "PreTrainedModel", head: nn.Module) -> None:
        self.last: Tensor | None = None
        self.read: Tensor | None = None
        self.made: Tensor = torch.empty(0)
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        layers = decoder_layers(model)
        inside = {id(module) for layer in layers for module in layer.modules()} | {id(head)}
        with ExitStack() as stack:
            for layer in layers:
                stack.callback(layer.register_forward_hook(self._layer).remove)
            for module in model.modules():
                if id(module) not in inside:
                    stack.callback(module.register_forward_hook(self._call).remove)
            stack.callback(head.register_forward_hook(self._head).remove)
            self.logits: Tensor = model(input_ids=probe_ids([model]), use_cache=False).logits

    def _layer(self, _module: nn.Module, _given: object, output: Any) -> None:
        self.last = stream(output)
        self.calls.clear()

    def _call(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if self.read is None and len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            self.calls.append((module, given[0], output))

    def _head(self, _module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        self.read, self.made = given[0], output


def _chains(x: Tensor, wanted: Tensor, calls: Sequence[tuple[nn.Module, Tensor, Tensor]]) -> Iterator[list[nn.Module]]:
    """The chains of calls, in their order, from `x` to a positive multiple of `wanted`; shortest first at each step."""
    if _are_multiples(x, wanted):
        yield []
        return
    for index, (module, given, made) in enumerate(calls):
        if given.shape == x.shape and torch.equal(given, x):
            for rest in _chains(made, wanted, calls[index + 1 :]):
                yield [module, *rest]


def _are_multiples(x: Tensor, wanted: Tensor) -> bool:
    """Whether `wanted` is x times one positive number (some models scale what their head reads)."""
    if x.shape != wanted.shape:
        return False
    x, wanted = x.double(), wanted.double()
    factor = (x * wanted).sum() / x.square().sum().clamp_min(1e-30)
    return bool(factor > 0) and standardised_error(factor * x, wanted) <= ROUNDED_TOLERANCE


def _in_same_order(logits: Tensor, made: Tensor) -> bool:
    """Whether a rising function of the head's output, such as a scale or a soft cap, gives the largest logits."""
    if logits.shape != made.shape:
        return False
    top = made.topk(min(_NUM_ORDERED, made.shape[-1]), dim=-1).indices
    ordered = logits.gather(-1, top).double()
    return bool((ordered.diff(dim=-1) <= 1e-3 * ordered.abs().amax()).all())


def _ignores_length(lens: Lens, width: int, device: torch.device) -> bool:
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device)
    return bool((torch.cosine_similarity(lens.normed(rows), lens.normed(5 * rows)) > _PARALLEL).all())


def _through(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _head_weights(head: nn.Module, width: int) -> Tensor:
    """`W_U: [width, vocabulary]` float32 of a head, an adapter's contribution included, without its bias."""
    if type(head) is nn.Linear:
        return head.weight.to(torch.float32).T
    weight = next(head.parameters())
    unit = torch.eye(width, device=weight.device, dtype=weight.dtype)
    return (head(unit) - head(torch.zeros_like(unit[:1]))).to(torch.float32)
