"""A causal language model run in pieces: hidden states, then logits of some tokens; whole, or above one decoder layer.

While a model runs, the `forward` of some modules is replaced: the layers up to the one in question pass on the given
activations without computing, and the head gets hidden states in pieces, so that the logits of a whole text are never
in memory. Everything else (masks, positions, final norm, soft-capping) stays the model's own.

Autograd follows every path here; callers who want no gradient turn it off. Does not know what the activations are.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_worker.models.pair import decoder, decoder_layers
from crosscope_worker.models.placement import first_device
from crosscope_worker.models.places import PairError
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, TOLERANCE, probe_ids, standardised_error
from crosscope_worker.models.residual import in_float32, standing_in, stream
from crosscope_worker.models.text_cache import Reached, TextCache
from crosscope_worker.work import is_out_of_memory

_RUN_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of a model that needs more of its lower layers than their output."""


class WholeModel:
    """A model whose head is run on hidden states in pieces. Not thread-safe."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Runs nothing; `check` does."""
        self._model = model
        self._decoder = decoder(model)
        self._output: Any = None
        """What the decoder returned last, without its hidden states."""

    def hidden(self, ids: Tensor, cache: TextCache | None = None) -> Tensor:
        """The head's input at every token, [batch, pos, d_model], where the ids are.

        ids: [batch, pos] int64, right-padded; with a cache, the tokens behind those that it holds.
        """
        given = {} if cache is None else {"past_key_values": cache}
        output = self._decoder(input_ids=ids, use_cache=cache is not None, **given)
        hidden = output.last_hidden_state
        self._output = copy.copy(output)
        self._output.last_hidden_state = hidden.new_empty(0)
        if cache is not None:
            self._output.past_key_values = None
        return hidden.to(ids.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [token, vocabulary] float32 of some tokens of `hidden`, [token, d_model], on its device."""
        output = copy.copy(self._output)
        output.last_hidden_state = hidden[None].to(first_device(self._model))
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        with standing_in(self._decoder, lambda *_, **__: output):
            return self._model(input_ids=ids, use_cache=False).logits[0].float().to(hidden.device)

    def check(self) -> int:
        """The number of logits. Runs the model on a few tokens; raises PairError if the pieces are not the model's."""
        named = f"{type(self._model).__name__} cannot be run in two steps, to hidden states and from there to logits"
        return check_pieces(self._model, named, lambda ids: self.logits(self.hidden(ids)[0]))


class UpperHalf:
    """A model above its decoder layer `layer`, run on given outputs of that layer. Not thread-safe."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        """Runs the whole model once on a few tokens, to check that the upper half gives the same logits.

        Raises PairError if it does not.
        """
        self._model = model
        self._whole = WholeModel(model)
        self._layers = list(decoder_layers(model))
        self._num_below = layer + 1
        self._beside: tuple[None, ...] | None = None
        """The layer's further outputs, left out; None if it returns its output alone."""
        self._vocabulary = self._check(layer)

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self._vocabulary

    def text_cache(self) -> TextCache | None:
        """A cache for the first run of a text; None for a model that cannot read a text's end with one."""
        return TextCache.of_first_run(len(self._layers)) if self._reads_ends else None

    def hidden(self, ids: Tensor, x: Tensor, cache: TextCache | None = None) -> Tensor:
        """The head's input if the layer's output is `x`: [batch, pos, d_model], in the model's data type.

        ids: [batch, pos] int64, right-padded. x: [batch, pos, d_model] float. Both begin behind the tokens that a cache
        holds.
        """
        return self._run(ids, x.to(self._model.dtype), self._num_below, cache)

    def last_hidden(self, ids: Tensor, x: Tensor, start: int, cache: TextCache) -> Tensor:
        """What `hidden` gives behind the first `start` of these tokens; the top layer runs whole for those alone.

        Of the tokens before them, the top layer's keys and values are all that can matter.
        """
        top = self._layers[-1]
        if not start or len(self._layers) == self._num_below:
            return self.hidden(ids, x, cache)[:, start:]
        given: list[Tensor] = []

        def keep(_module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            given.append(inputs[0] if inputs else named["hidden_states"])

        cache.stop_at_top()
        with top.register_forward_pre_hook(keep, with_kwargs=True), suppress(Reached):
            self.hidden(ids, x, cache)
        return self._run(ids[:, start:], given[0][:, start:], len(self._layers) - 1, cache.top_before(start))

    def _run(self, ids: Tensor, x: Tensor, num_below: int, cache: TextCache | None) -> Tensor:
        """The head's input if the lowest layers give `x`."""
        x = x.to(first_device(self._model))
        given = x if self._beside is None else (x, *self._beside)
        with ExitStack() as stack:
            for layer in self._layers[:num_below]:
                stack.enter_context(standing_in(layer, lambda *_, **__: given))
            return self._whole.hidden(ids, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [token, vocabulary] float32 of some tokens of `hidden`, [token, d_model]."""
        return self._whole.logits(hidden)

    def _check(self, layer: int) -> int:
        def run(ids: Tensor) -> Tensor:
            return self.logits(self.hidden(ids, self._stream(ids))[0])

        named = f"{type(self._model).__name__} cannot be run from the output of layer {layer} on"
        return check_pieces(self._model, named, run)

    def _stream(self, ids: Tensor) -> Tensor:
        """The layer's output in a run of the whole model, [batch, pos, d_model]. Notes what else the layer returns."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._beside = None if isinstance(output, Tensor) else (None,) * (len(output) - 1)
            found.append(stream(output))

        with self._layers[self._num_below - 1].register_forward_hook(keep):
            self._whole.hidden(ids)
        return found[0]

    @cached_property
    def _reads_ends(self) -> bool:
        """Whether two changed ends of a text, read behind its unchanged beginning, are as in whole runs; tried once.

        In float32: in half precision, equal computations of other shapes differ too, the more the deeper the model is.
        """
        ids = probe_ids([self._model])
        cut, start = ids.shape[1] // 2, 2
        try:
            with torch.inference_mode(), in_float32(self._model):
                x = self._stream(ids)
                changed = torch.cat([x, x])
                changed[:, cut:] = torch.stack([x[0, cut:].flip(0), -x[0, cut:]])
                expected = self.logits(self.hidden(ids.expand(2, -1), changed)[:, cut + start :].flatten(0, 1))
                cache = TextCache.of_first_run(len(self._layers))
                self.hidden(ids, x, cache)
                ends = ids[:, cut:].expand(2, -1), changed[:, cut:]
                whole = self.hidden(*ends, cache.before(cut))[:, start:]
                last = self.last_hidden(*ends, start, cache.before(cut))
                logits = [self.logits(hidden.flatten(0, 1)) for hidden in (whole, last)]
        except Exception as error:  # models raise anything for a cache that they do not know
            if is_out_of_memory(error):
                raise
            return False
        tolerance = TOLERANCE if getattr(self._model, "hf_quantizer", None) is None else ROUNDED_TOLERANCE
        return all(standardised_error(each.nan_to_num(), expected.nan_to_num()) <= tolerance for each in logits)


@torch.inference_mode()
def check_pieces(model: PreTrainedModel, named: str, run: Callable[[Tensor], Tensor]) -> int:
    """The number of a model's logits, after `run` has given the same as the whole model on a few tokens.

    Raises PairError, which begins with `named`, if it does not.
    """
    ids = probe_ids([model])
    try:
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        logits = run(ids)
    except _RUN_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise PairError(f"{named}: {' '.join(str(error).split())}") from error
    # Finite activations are checked elsewhere, on real texts.
    difference = standardised_error(logits.nan_to_num(), expected.nan_to_num())
    if difference > ROUNDED_TOLERANCE:
        raise PairError(f"{named}: its logits differ by {difference:.2g} of their spread")
    return expected.shape[-1]
