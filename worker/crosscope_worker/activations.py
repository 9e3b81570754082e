"""The residual stream of both models behind one decoder layer. Computes nothing above that layer.

Does not know texts, roles or which tokens anybody keeps.
"""

import functools
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_worker.pair import Pair, check_layer, decoder_layers

_PROBE_TOKENS = 12
_PROBE_TOLERANCE = 0.02
"""Largest difference of a token's activation in a shared row, as a share of the largest; half precision rounds."""


class _Reached(BaseException):
    """Stops a forward pass at the layer whose output is wanted."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class PairActivations:
    """Runs both models of a pair up to the output of decoder layer `layer`."""

    def __init__(self, pair: Pair, layer: int) -> None:
        """Raises PairError if a model has no such layer."""
        check_layer(pair, layer)
        self.pair = pair
        self.layer = layer
        self.d_model = pair.d_model
        self._layers = [decoder_layers(model)[layer] for model in pair.models]

    @torch.inference_mode()
    def __call__(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Activations of a batch of right-padded texts.

        ids: [batch, pos] int64, any id in the padding. lengths: [batch] int64, tokens of each text.
        Returns [batch, pos, both] float32 on the pair's device, zero in the padding. One model runs after the other.
        """
        x = self.rows(ids)
        padding = torch.arange(ids.shape[1], device=x.device) >= lengths.to(x.device)[:, None]
        return x.masked_fill_(padding[:, :, None], 0.0)

    @torch.inference_mode()
    def rows(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Activations of rows in which several texts may lie one behind the other; none sees another.

        ids: [row, pos] int64. positions: [row, pos] int64, of each token in its own text (packing.Forward.fill); None
        where each row holds a single text, as it must unless `shares_rows`.
        Returns [row, pos, both] float32 on the pair's device; what it gives for padding means nothing.
        """
        ids = ids.to(self.pair.device)
        positions = None if positions is None else positions.to(self.pair.device)
        models = zip(self.pair.models, self._layers, strict=True)
        return torch.cat([_output(model, layer, ids, positions).float() for model, layer in models], dim=-1)

    @functools.cached_property
    def shares_rows(self) -> bool:
        """Whether both models keep texts of one row apart by their positions, tried on a few tokens.

        Some cannot: a recurrent state, say, goes on from one text to the next.
        """
        vocabularies = [cast("nn.Embedding", m.get_input_embeddings()).num_embeddings for m in self.pair.models]
        ids = torch.arange(_PROBE_TOKENS)[None] % min(vocabularies)
        halves = ids.split(_PROBE_TOKENS // 2, dim=1)
        alone = torch.cat([self.rows(half) for half in halves], 1)
        try:
            together = self.rows(ids, torch.cat([torch.arange(half.shape[1]) for half in halves])[None])
        except (RuntimeError, TypeError, ValueError):
            return False  # A model that takes no positions.
        return bool((together - alone).abs().max() <= _PROBE_TOLERANCE * alone.abs().max())


def _output(model: PreTrainedModel, layer: nn.Module, ids: Tensor, positions: Tensor | None) -> Tensor:
    """[row, pos, d_model]. No attention mask: padding is behind every token that is kept."""

    def stop(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        raise _Reached(output if isinstance(output, Tensor) else output[0])

    given = {} if positions is None else {"position_ids": positions}
    hook = layer.register_forward_hook(stop)
    try:
        model.get_decoder()(input_ids=ids, use_cache=False, **given)
    except _Reached as reached:
        return reached.output
    finally:
        hook.remove()
    raise AssertionError(f"{type(model).__name__} ran without calling its decoder layer")
