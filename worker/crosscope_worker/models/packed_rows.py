"""Both models on one row of a fixed length that holds many texts: on CUDA, with packed attention and compiled layers.

Since every row has the same length, each kind of decoder layer is compiled once, before anything is read. Whether the
numbers are right is tried first, and decides: a model that cannot is read in the usual way. Does not know texts.
"""

import functools
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from crosscope_proto.roles import MODEL_NAMES
from crosscope_worker.models.packed_attention import CannotPack, attending_packed, check_can_pack
from crosscope_worker.models.pair import Pair, decoder_layers
from crosscope_worker.models.probes import TOLERANCE, probe_ids, standardised_error
from crosscope_worker.models.residual import in_float32, layer_outputs, standing_in, stream
from crosscope_worker.work import is_out_of_memory

BACKEND = "inductor"
"""What compiles the layers."""
PROBE_TOKENS = 2048
"""Most tokens that are tried; the models' own attention makes a score for each two of them."""
_MEDIAN_RATIO, _MOST_RATIO = 1.5, 3.0
"""How far errors of tokens, their median and the largest, may exceed those of the models' own attention."""
_ROUNDING = (1e-5, 1e-4)
"""Relative errors, median and largest, that float32 has anyway."""


@dataclass(frozen=True)
class Errors:
    """Relative errors of tokens' activations against float32: `|x - exact| / |exact|`."""

    median: float
    most: float

    @classmethod
    def of(cls, x: Tensor, exact: Tensor) -> Self:
        """x, exact: [row, pos, d_model]. Infinite if one is not finite."""
        error = ((x.float() - exact).norm(dim=-1) / exact.norm(dim=-1)).nan_to_num(float("inf"))
        return cls(float(error.median()), float(error.max()))

    def within(self, usual: "Errors") -> bool:
        """Whether they are of the same size as those of the usual computation."""
        median, most = max(_MEDIAN_RATIO * usual.median, _ROUNDING[0]), max(_MOST_RATIO * usual.most, _ROUNDING[1])
        return self.median <= median and self.most <= most

    def __str__(self) -> str:
        return f"{100 * self.median:.2g} % and {100 * self.most:.2g} %"


@dataclass(frozen=True, eq=False)
class PackedRows:
    """A way to run both models that was tried. Rows are [1, length]; see `tried`."""

    pair: Pair
    layer: int
    length: int
    compiled: bool
    """Whether layers are compiled."""
    errors: dict[str, Errors] = field(default_factory=dict)
    """Of each model, as tried."""
    num_graphs: int = 0
    """Graphs that were compiled for it."""

    @contextmanager
    def running(self) -> Generator[None]:
        """Lets both models run so: on rows of `length` tokens, with positions.

        Raises CannotPack for a layer whose forward somebody has replaced.
        """
        with ExitStack() as stack:
            for model in self.pair.models:
                stack.enter_context(attending_packed(model))
                for layer in decoder_layers(model)[: self.layer + 1] if self.compiled else ():
                    if "forward" in layer.__dict__:
                        raise CannotPack("a decoder layer's forward is not its class's")
                    stack.enter_context(standing_in(layer, functools.partial(_compiled(type(layer).forward), layer)))
            yield


@torch.inference_mode()
def tried(pair: Pair, layer: int, length: int) -> tuple[PackedRows | None, str]:
    """How both models may be read in rows of `length` tokens, if at all; and a sentence that says so, with figures.

    Packed attention must give what the models' own does, in float32 (probes.standardised_error). Then the rows as they
    will be read are compared: against float32, errors must be as small as the models' own attention has. Layers that
    cannot be compiled run as they are. Where memory runs out, torch's own error passes.
    """
    started, reasons = time.monotonic(), list[str]()
    ids, positions = _probe(pair, length)
    try:
        exact = [_check_attention(pair, index, layer, ids, positions) for index in range(len(pair.models))]
    except Exception as error:  # Compilers of kernels raise anything.
        if is_out_of_memory(error):
            raise
        return None, f"rows are short, with the models' own attention: {_said(error)}"
    usual = [Errors.of(_read(model, layer, ids, positions), x) for model, x in zip(pair.models, exact, strict=True)]
    for compiled in (True, False):
        before = graphs_compiled()
        rows = PackedRows(pair, layer, length, compiled)
        try:
            found = _errors(rows, ids, positions, exact)
            _check_errors(found, usual)
        except Exception as error:  # torch.compile raises anything.
            if is_out_of_memory(error):
                raise
            reasons.append(f"{'compiled layers' if compiled else 'packed attention'} cannot be used: {_said(error)}")
            continue
        num_graphs = graphs_compiled() - before
        rows = PackedRows(pair, layer, length, compiled, dict(zip(MODEL_NAMES, found, strict=True)), num_graphs)
        return rows, "; ".join([*reasons, _sentence(rows, usual, time.monotonic() - started)])
    return None, "; ".join(["rows are short, with the models' own attention", *reasons])


def graphs_compiled() -> int:
    """Number of graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@functools.cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer class's forward, compiled at its first call with an input of a new shape. Layers of a kind share it."""
    return torch.compile(forward, fullgraph=True, dynamic=False, backend=BACKEND)


def _probe(pair: Pair, length: int) -> tuple[Tensor, Tensor]:
    """A row of a few texts, very short ones among them: ids and positions, [1, pos] each."""
    pos = min(length, PROBE_TOKENS)
    sizes = [1, 2, pos // 16, pos // 8, pos // 4]
    sizes.append(pos - sum(sizes))
    ids = probe_ids(pair.models, pos=pos)
    return ids, torch.cat([torch.arange(size, device=ids.device) for size in sizes])[None]


def _check_attention(pair: Pair, index: int, layer: int, ids: Tensor, positions: Tensor) -> Tensor:
    """The model's activations in float32, [1, pos, d_model], after packed attention has given the same.

    Raises CannotPack.
    """
    model = pair.models[index]
    check_can_pack(model)
    with in_float32(model, layer):
        exact = _read(model, layer, ids, positions)
        with attending_packed(model):
            packed = _read(model, layer, ids, positions)
    error = standardised_error(packed, exact)
    if error > TOLERANCE:
        raise CannotPack(
            f"the {MODEL_NAMES[index]} model's activations change by {error:.2g} of their spread in float32, more than "
            f"{TOLERANCE:g}"
        )
    return exact


def _errors(rows: PackedRows, ids: Tensor, positions: Tensor, exact: Sequence[Tensor]) -> list[Errors]:
    """Errors of both models' activations, run as they will be: the texts at the beginning of a row of full length."""
    padded = [torch.nn.functional.pad(each, (0, rows.length - each.shape[1])) for each in (ids, positions)]
    with rows.running():
        found = [_read(model, rows.layer, *padded)[:, : ids.shape[1]] for model in rows.pair.models]
    return [Errors.of(x, each) for x, each in zip(found, exact, strict=True)]


def _check_errors(found: Sequence[Errors], usual: Sequence[Errors]) -> None:
    """Raises CannotPack for errors that are larger than usual."""
    for name, errors, own in zip(MODEL_NAMES, found, usual, strict=True):
        if not errors.within(own):
            raise CannotPack(
                f"the {name} model's errors against float32 are {errors} of an activation's norm (median and largest); "
                f"its own attention has {own}"
            )


def _sentence(rows: PackedRows, usual: Sequence[Errors], seconds: float) -> str:
    how = f"{rows.num_graphs} graphs of compiled layers" if rows.compiled else "layers that are not compiled"
    errors = ", ".join(
        f"{errors} in the {name} model (its own attention: {own})"
        for (name, errors), own in zip(rows.errors.items(), usual, strict=True)
    )
    return (
        f"rows hold {rows.length} tokens of many texts, with packed attention and {how}, ready after {seconds:.0f} s; "
        f"a token's error against float32, median and largest: {errors}"
    )


def _read(model: Any, layer: int, ids: Tensor, positions: Tensor) -> Tensor:
    return stream(layer_outputs(model, [layer], ids, positions)[0])


def _said(error: Exception) -> str:
    """An error's kind and the beginning of what it says, in one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, CannotPack) else f"{type(error).__name__}: {text}"
