"""The residual stream of both models after one decoder layer. Computes nothing above that layer.

Does not know texts, roles or which tokens anybody keeps.
"""

import functools
import logging
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_worker.models import packed_rows, probes
from crosscope_worker.models.pair import Pair, check_layer, num_embeddings, shared_layers
from crosscope_worker.models.places import PairError
from crosscope_worker.models.residual import NotReached, Stack, layer_outputs, stream
from crosscope_worker.transfer import sent

log = logging.getLogger(__name__)


class PairActivations:
    """Runs both models of a pair up to the output of decoder layer `layer`."""

    def __init__(self, pair: Pair, layer: int) -> None:
        """Raises PairError if a model has no such layer."""
        check_layer(pair, layer)
        self.pair = pair
        self.layer = layer
        self.d_model = pair.d_model
        self._packed: dict[int, tuple[packed_rows.PackedRows | None, str]] = {}
        """How rows of a length are read, once that was tried, and what was said about it."""

    def check(self) -> None:
        """Tries both models on a few tokens. Raises PairError if the layer's output is not a model's residual stream.

        See probes.check_model.
        """
        for name, model in zip(MODEL_NAMES, self.pair.models, strict=True):
            probes.check_model(model, self.layer, f"pair {self.pair.manifest.name!r}: the {name} model")

    @torch.inference_mode()
    def __call__(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Activations of a batch of right-padded texts, each as if it were alone.

        ids: [batch, pos] int64, any id in the padding. lengths: [batch] int64, tokens of each text.
        Returns [batch, pos, both] float32 on the pair's device, zero in the padding. One model runs after the other;
        texts of different `regimes` run apart.
        """
        regimes = torch.tensor(self.regimes(lengths.tolist()))
        if len(ids) and bool((regimes == regimes[0]).all()):
            x = self.rows(ids)
        else:
            x = torch.zeros(*ids.shape, sum(self.d_model), device=self.pair.device)
            for regime in regimes.unique():
                some = regimes == regime
                longest = int(lengths[some].max())
                x[some.to(x.device), :longest] = self.rows(ids[some, :longest])
        padding = torch.arange(ids.shape[1], device=x.device) >= lengths.to(x.device)[:, None]
        return x.masked_fill_(padding[:, :, None], 0.0)

    @torch.inference_mode()
    def rows(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Activations of rows in which several texts may lie one after the other; none sees another.

        ids: [row, pos] int64, of texts of one regime. positions: [row, pos] int64, of each token in its own text
        (packing.Forward.fill); None where each row holds a single text, as it must unless `shares_rows`. A single row
        with positions is read as `packs_rows` has found for its length.
        Returns [row, pos, both] float32 on the pair's device; values at padding mean nothing. Raises PairError for an
        id that has no embedding in both models.
        """
        self.check_ids(ids)
        ids = sent(ids, self.pair.device)
        positions = None if positions is None else sent(positions, self.pair.device)
        is_one = positions is not None and len(ids) == 1
        packed, _ = self._packed.get(ids.shape[1], (None, "")) if is_one else (None, "")
        if positions is not None and packed is not None:
            positions = positions.clone()  # Compiled layers hold for tensors that were made in inference mode.
        _ = self._num_shared  # Found in the models' own way.
        with nullcontext() if packed is None else packed.running():
            return self.unchecked_rows(ids, positions)

    def unchecked_rows(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """The same of tensors on the pair's device. Asks the device nothing, so that a run can be recorded."""
        num_shared = min(self._num_shared, self.layer + 1)
        base, chat = _both(self._stacks, self.layer, ids, positions, num_shared)
        # Both run before one waits for the other: they may lie on two devices.
        return torch.cat([each.to(ids.device).float() for each in (base, chat)], dim=-1)

    def check_ids(self, ids: Tensor) -> None:
        """Raises PairError for an id that has no embedding in both models; ids: any shape, int64."""
        size = min(self._num_embeddings)
        if ids.numel() and (largest := int(ids.max())) >= size:
            name = MODEL_NAMES[self._num_embeddings.index(size)]
            raise PairError(
                f"pair {self.pair.manifest.name!r}: token id {largest} has no embedding in the {name} model, which has "
                f"{size}; leave texts with that token out"
            )

    @functools.cached_property
    def _stacks(self) -> tuple[Stack, Stack]:
        base, chat = map(Stack.of, self.pair.models)
        return base, chat

    @functools.cached_property
    def _num_embeddings(self) -> list[int]:
        return [num_embeddings(model) for model in self.pair.models]

    @functools.cached_property
    def _num_shared(self) -> int:
        """Number of lowest layers that both models share and that run once; 0 if that would change the result."""
        num_shared = shared_layers(*self.pair.models)
        if num_shared:
            ids = probes.probe_ids(self.pair.models)
            at_most = min(num_shared, self.layer + 1)
            try:
                apart, once = (_both(self._stacks, self.layer, ids, None, number)[CHAT] for number in (0, at_most))
            except NotReached:
                return 0
            if probes.standardised_error(once, apart) > probes.ROUNDED_TOLERANCE:
                return 0
        return num_shared

    @functools.cached_property
    def shares_rows(self) -> bool:
        """Whether both models keep texts of one row apart by their positions (probes.mixing_of_texts); logs why not."""
        for name, model in zip(MODEL_NAMES, self.pair.models, strict=True):
            if mixing := probes.mixing_of_texts(model, self.layer):
                log.info("each text has a row to itself: the %s model %s", name, mixing)
                return False
        return True

    def packs_rows(self, length: int) -> bool:
        """Whether a row of exactly `length` tokens may hold many texts at no cost (packed_rows).

        Tries it once, which takes seconds, and logs what came of it; `rows` then reads such rows so. What is compiled
        holds for the process's way to make float32 products (precision). False for a pair without `long_rows`.
        """
        if not (self.pair.long_rows and self.shares_rows):
            return False
        if length not in self._packed:
            self._packed[length] = packed_rows.tried(self.pair, self.layer, length)
            log.info("pair %r: %s", self.pair.manifest.name, self._packed[length][1])
        return self._packed[length][0] is not None

    def about_rows(self, length: int) -> str:
        """What `packs_rows` has found, in a sentence with figures; empty if nothing was tried."""
        return self._packed.get(length, (None, ""))[1]

    def regimes(self, lengths: Sequence[int]) -> list[int]:
        """A regime for each text length; texts of two regimes must not share a forward, which would change them."""
        if self._alone:
            return list(lengths)
        return [bisect_left(self.long_text_limits, length) for length in lengths]

    @functools.cached_property
    def long_text_limits(self) -> tuple[int, ...]:
        """Numbers of tokens above which a model reads a whole forward in another way, ascending."""
        return tuple(sorted({limit for model in self.pair.models for limit in probes.long_text_limits(model)}))

    @functools.cached_property
    def _alone(self) -> bool:
        """Whether texts of different lengths must not share a forward, since nothing says where a limit lies."""
        unlimited = [model for model in self.pair.models if not probes.long_text_limits(model)]
        return any(probes.depends_on_longer_texts(model, self.layer) for model in unlimited)


def _both(
    stacks: tuple[Stack, Stack], layer: int, ids: Tensor, positions: Tensor | None, num_shared: int
) -> tuple[Tensor, Tensor]:
    """The layer's output in both models, [row, pos, d_model] each; the lowest `num_shared` layers run once."""
    wanted = [num_shared - 1, layer] if 0 < num_shared <= layer else [layer]
    found: list[Any] = layer_outputs(stacks[BASE], wanted, ids, positions)
    base = stream(found[-1])
    if num_shared > layer:
        return base, base
    below = (num_shared, found[0]) if num_shared else None
    return base, stream(layer_outputs(stacks[CHAT], [layer], ids, positions, below)[0])
