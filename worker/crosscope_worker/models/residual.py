"""The output of one decoder layer of one model: the residual stream there. Nothing above the layer is computed.

Replaces modules' `forward` and sets hooks; both are undone when a function returns or raises.
Does not know pairs, texts, or which tokens anybody keeps.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_worker.models.pair import decoder, decoder_layers
from crosscope_worker.precision import float32_products

_ROWS_AT_ONCE = 1 << 14
"""Rows of a head that are widened at a time."""


class NotReached(RuntimeError):
    """A model ran without calling the layer whose output is wanted."""


class _Reached(BaseException):
    """Stops a forward pass at the layer whose output is wanted."""


class Stack(NamedTuple):
    """The modules of a model that a run to some layer needs. To find them takes as long as a layer of a small model."""

    decoder: nn.Module
    layers: nn.ModuleList

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Stack":
        """A model's. Raises PairError if it has no list of decoder layers."""
        return cls(decoder(model), decoder_layers(model))


def layer_outputs(
    model: PreTrainedModel | Stack,
    wanted: Sequence[int],
    ids: Tensor,
    positions: Tensor | None = None,
    below: tuple[int, Any] | None = None,
) -> list[Any]:
    """The outputs of the decoder layers with these ascending indices; the model stops at the last of them.

    `model`: a model, or what was found of it. ids, positions: [row, pos] int64, on one device. `below`: a number of
    layers and what the last of them returned for these ids; they are not computed. No attention mask: padding comes
    after every token that is kept. Each output is on its layer's device.
    Raises NotReached if the highest layer is not called.
    """
    run = model if isinstance(model, Stack) else Stack.of(model)
    layers = run.layers
    found: dict[int, Any] = {}

    def keeping(index: int) -> Callable[[nn.Module, object, Any], None]:
        def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
            found[index] = output
            if index == wanted[-1]:
                raise _Reached

        return keep

    given = {} if positions is None else {"position_ids": positions}
    with ExitStack() as stack:
        if below is not None:
            for layer in layers[: below[0]]:
                stack.enter_context(standing_in(layer, lambda *_, **__: below[1]))
        for index in wanted:
            stack.callback(layers[index].register_forward_hook(keeping(index)).remove)
        with suppress(_Reached):
            run.decoder(input_ids=ids, use_cache=False, **given)
    if missed := [index for index in wanted if index not in found]:
        raise NotReached(f"{type(run.decoder).__name__} does not call its decoder layer {missed[0]} for a text")
    return [found[index] for index in wanted]


class LowerHalf:
    """A model up to the output of one decoder layer, run on inputs of any kind. Finds its modules once."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self._decoder = decoder(model)
        self._layer = decoder_layers(model)[layer]

    def __call__(self, **inputs: Any) -> Tensor:
        """The residual stream behind the layer, [row, pos, d_model], on its device; a cache among the inputs is written
        as usual.

        Raises NotReached if the layer is not called.
        """
        found: list[Any] = []

        def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
            found.append(output)
            raise _Reached

        hook = self._layer.register_forward_hook(keep)
        try:
            with suppress(_Reached):
                self._decoder(**inputs)
        finally:
            hook.remove()
        if not found:
            raise NotReached(f"{type(self._decoder).__name__} does not call the decoder layer that is read")
        return stream(found[0])


def stream(output: Any) -> Tensor:
    """The residual stream in what a decoder layer returns: itself, or the first of several values."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def standing_in(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Lets calls of `module` call `forward` instead."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def in_float32(model: PreTrainedModel, layer: int | None = None) -> Generator[None]:
    """Lets the decoder layers up to `layer` compute in float32, so that rounding neither hides nor makes a difference.

    None: all layers, and what comes behind them, such as the final norm and the head. Each call makes a float32 copy of
    its layer and drops it: memory for one layer more, whatever the model's size; a head is copied piece by piece.
    Quantised weights stay as they are, and so do layers that are float32 already. Products are IEEE's.
    """
    with ExitStack() as stack:
        stack.enter_context(float32_products("ieee"))
        if getattr(model, "hf_quantizer", None) is None:
            layers = decoder_layers(model)
            for each in [*layers, *_beside(model, layers)] if layer is None else layers[: layer + 1]:
                if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in each.parameters()):
                    stack.enter_context(standing_in(each, _wider(each)))
        yield


def _beside(model: PreTrainedModel, layers: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules that have weights and stand in no layer, without embeddings: those are looked up, so they round none.

    Only modules without parts of their own, so that nothing is widened twice.
    """
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [
        module
        for module in model.modules()
        if id(module) not in inside and not isinstance(module, nn.Embedding) and not list(module.children())
    ]


def _wider(layer: nn.Module) -> Callable[..., Any]:
    if type(layer) is nn.Linear:
        return _wider_linear(layer)
    own = layer.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        wide = copy.deepcopy(layer).float()
        if own is None:
            del wide.forward
        else:
            wide.forward = own
        return wide.forward(*_widened(args), **_widened(kwargs))  # Hooks are the layer's own, and run there.

    return forward


def _wider_linear(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The product in float32, some rows of the weight at a time: a head's are as many as the vocabulary."""

    def forward(x: Tensor) -> Tensor:
        made = [nn.functional.linear(x.float(), rows.float()) for rows in linear.weight.split(_ROWS_AT_ONCE)]
        y = torch.cat(made, dim=-1)
        bias = getattr(linear, "bias", None)
        return y if bias is None else y + bias.float()

    return forward


def _widened(value: Any) -> Any:
    """Half-precision tensors of a nested value in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, Mapping):
        return {key: _widened(each) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_widened(each) for each in value)
    return value
