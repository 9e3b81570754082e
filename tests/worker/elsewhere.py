"""Devices that this machine need not have, for tests of what lies on several.

A tensor there has its values in the CPU's memory and computes them there, bit for bit as the CPU does. But it says that
it is elsewhere, and what mixes it with tensors of another place fails, as it does on GPUs.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

HERE, THERE = "lazy:0", "lazy:1"
"""Two such devices. Of all kinds, this one asks no driver and leaves autograd on the caller's thread."""
_aten = torch.ops.aten
_TAKE_CPU_INDICES = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten.copy.default}


class Elsewhere(torch.Tensor):
    """A tensor whose values are in `values_here`, on the CPU."""

    values_here: Tensor

    @staticmethod
    def __new__(cls: type["Elsewhere"], inner: Tensor, device: torch.device) -> "Elsewhere":
        same = {"dtype": inner.dtype, "layout": inner.layout, "device": device}
        if inner.layout is torch.strided:
            same |= {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **same)
        made.values_here = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Lets tensors be made elsewhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Values(TorchFunctionMode):
    """Lets tensors of given values be made elsewhere: torch would make them there before anyone can tell."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == "lazy":
            del kwargs["device"]
            return func(*args, **kwargs).to(device)
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].cpu().tolist()
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1]), *args[2:]
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Generator[None]:
    """Within it there are such devices. Inference mode is only the absence of gradients there, since torch lets no
    tensor of another kind be looked at in it that was made outside.
    """
    before: list[bool] = []

    def enter(self: torch.inference_mode) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(not self.mode)

    def leave(_self: torch.inference_mode, *_: object) -> None:
        torch.set_grad_enabled(before.pop())

    with _Values(), _Mode(), patch.multiple(torch.inference_mode, __enter__=enter, __exit__=leave):
        yield


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    asked = _asked(func, args, kwargs)
    device = _device(func, _leaves(args, kwargs)) if asked is None else asked
    found = func(*_mapped(_inner, args), **_mapped(_inner, kwargs))
    if device.type != "lazy":
        return found
    if func.overloadpacket is _aten.to:  # In inference mode it comes as it is: a copy, or the tensor itself.
        return args[0] if found is _inner(args[0]) and args[0].device == device else Elsewhere(found, device)
    found = _mapped(lambda leaf: Elsewhere(leaf, device) if isinstance(leaf, Tensor) else leaf, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if _signature(func)[1] else found


def _leaves(args: Any, kwargs: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    _mapped(found.append, (*args, *kwargs.values()))
    return found


def _mapped(of: Callable[[Any], Any], value: Any) -> Any:
    """A nested value with `of` its leaves; torch's own tree functions take ten times as long."""
    if type(value) in (tuple, list):
        return type(value)([_mapped(of, each) for each in value])
    if type(value) is dict:
        return {key: _mapped(of, each) for key, each in value.items()}
    return of(value)


def _inner(leaf: Any) -> Any:
    """What the CPU is asked instead."""
    if isinstance(leaf, Elsewhere):
        return leaf.values_here
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == "lazy" else leaf


@functools.cache
def _signature(func: Any) -> tuple[int | None, bool]:
    """Where among its arguments an operation is told a device, and whether a result shares memory with an argument."""
    named = [argument.name for argument in func._schema.arguments]
    shares = any(each.alias_info for each in (*func._schema.arguments, *func._schema.returns))
    return (named.index("device") if "device" in named else None), shares


def _asked(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device for which a call asks by name, or by a tensor that is there."""
    if func is _aten.to.other:
        return args[1].device
    place, _ = _signature(func)
    if place is None:
        return None
    said = args[place] if place < len(args) else kwargs.get("device")
    return None if said is None else torch.device(said)


def _device(func: Any, leaves: list[Any]) -> torch.device:
    """Where a result is. Raises RuntimeError for tensors of several places."""
    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not given:
        return torch.device("cpu")
    if func in _COPIES:
        return given[0].device
    there = {tensor.device for tensor in given if isinstance(tensor, Elsewhere)}
    plain = [tensor for tensor in given if not isinstance(tensor, Elsewhere) and tensor.dim()]
    if func in _TAKE_CPU_INDICES and isinstance(given[0], Elsewhere):
        plain = []
    if len(there) > 1 or (there and plain):
        where = ", ".join(sorted({str(tensor.device) for tensor in given}))
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found {where}")
    return next(iter(there), torch.device("cpu"))
