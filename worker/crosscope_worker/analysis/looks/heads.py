"""Both models' predictions from the outputs of their last layers, and KL(chat ‖ base) of them (math §10).

Knows tensors of tokens; does not know texts.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.fidelity import LOGIT_BYTES
from crosscope_worker.effects import predictions
from crosscope_worker.effects.predictions import log_probabilities
from crosscope_worker.models.pair import Pair, decoder_layers
from crosscope_worker.models.places import PairError
from crosscope_worker.models.upper_half import UpperHalf


class Heads:
    """What lies above the last decoder layer of both models: final norm and head. Not thread-safe."""

    def __init__(self, pair: Pair) -> None:
        """Raises PairError for models of unequal depth, and for one that cannot be run from its last layer on."""
        depths = [len(decoder_layers(model)) for model in pair.models]
        if depths[BASE] != depths[CHAT]:
            raise PairError(
                f"pair {pair.manifest.name!r}: the base model has {depths[BASE]} layers and the chat model "
                f"{depths[CHAT]}; a look needs models of equal depth"
            )
        self.layer = depths[BASE] - 1
        """Index of the last layer."""
        self._d_model = pair.d_model
        self._uppers = [UpperHalf(model, self.layer) for model in pair.models]
        self._vocabulary = min(upper.vocabulary for upper in self._uppers)
        self._rows = max(1, LOGIT_BYTES // (4 * max(upper.vocabulary for upper in self._uppers)))

    @torch.inference_mode()
    def pieces(self, x: Tensor) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
        """Log-probabilities of the next token, base first, [token, vocabulary] each, in pieces of LOGIT_BYTES.

        x: [token, both], outputs of the last layer. Only ids that both heads have count; raises PairError if a model
        gives more than MAX_OUTSIDE of the probability to others.
        """
        for start in range(0, len(x), self._rows):
            at = slice(start, start + self._rows)
            base, chat = x[at].split(self._d_model, dim=-1)
            yield at, (self._of_last(BASE, base), self._of_last(CHAT, chat))

    @torch.inference_mode()
    def kl(self, x: Tensor) -> Tensor:
        """KL(chat ‖ base) at every token of `x: [token, both]`: [token] float32, nats, at least 0.

        Raises PairError as `pieces`.
        """
        found = torch.empty(len(x), device=x.device)
        for at, (base, chat) in self.pieces(x):
            found[at] = divergence(chat, base)
        return found

    def of_hidden(self, upper: UpperHalf, hidden: Tensor) -> Tensor:
        """Log-probabilities [token, vocabulary] of an upper half's `hidden: [token, d_model]`; raises as `pieces`."""
        return log_probabilities(upper.logits(hidden), self._vocabulary)

    def _of_last(self, model: int, x: Tensor) -> Tensor:
        upper = self._uppers[model]
        # A row a token: no layer runs, and the masks of one long row would be large.
        ids = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)
        return self.of_hidden(upper, upper.hidden(ids, x[:, None])[:, 0])


def divergence(of: Tensor, against: Tensor) -> Tensor:
    """KL(of ‖ against) of log-probabilities [token, vocabulary], [token] float32, nats; rounding below 0 is 0."""
    return predictions.divergence(of, against).clamp_min(0.0)
