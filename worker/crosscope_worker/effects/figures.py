"""Figures that attribution explains, as functions of a model's stream at the layer (math §9).

A figure is a sum over predictions: KL(chat ‖ base), or log-probabilities of the tokens of two continuations with a sign
each. Logits are made in pieces of LOGIT_BYTES, also on the way back. Knows no latents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.effects.predictions import divergence, log_probabilities
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.upper_half import UpperHalf

LOGIT_BYTES = 32 << 20
Terms = Callable[[Tensor, slice], Tensor]
"""The terms [variant, prediction] of logits [variant, prediction, vocabulary]; the slice says which predictions."""


@dataclass(frozen=True, eq=False)
class _Text:
    """A text some of whose predictions are in a figure."""

    ids: Tensor
    """[pos] int64."""
    x: Tensor
    """[pos, d_model] float32: the unchanged stream."""
    at: Tensor
    """[prediction] int64: the tokens where they are made."""
    terms: Terms


@dataclass(frozen=True, eq=False)
class Figure:
    """A sum over predictions of one model, which depends on the stream at the first `num_tokens` tokens of a prompt."""

    upper: UpperHalf
    texts: Sequence[_Text]
    explained: np.ndarray
    """[any] int64: tokens of the prompt that are named as explained."""
    num_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(text.ids) for text in self.texts)

    def values(self, taken: Tensor) -> Tensor:
        """The figure after each of `taken: [variant, num_tokens, d_model]` is subtracted; [variant] float64."""
        found = torch.zeros(len(taken), dtype=torch.float64, device=taken.device)
        for text in self.texts:
            hidden = self._hidden(text, taken)
            for which, terms in self._terms(text, hidden):
                found[which] += terms.sum(dim=1, dtype=torch.float64)
        return found

    def gradient(self) -> Tensor:
        """The figure's gradient by the stream, [num_tokens, d_model] float32; the backward pass is the model's own."""
        taken = self.texts[0].x.new_zeros(1, self.num_tokens, self.texts[0].x.shape[1], requires_grad=True)
        for text in self.texts:
            with torch.enable_grad():
                hidden = self._hidden(text, taken)
                # Each piece goes back to the hidden states at once, so that no more logits are kept than one piece.
                apart = hidden.detach().requires_grad_()
                for _, terms in self._terms(text, apart):
                    terms.sum().backward()
            assert apart.grad is not None
            hidden.backward(apart.grad)
        assert taken.grad is not None
        return -taken.grad[0]

    def _hidden(self, text: _Text, taken: Tensor) -> Tensor:
        """The head's input where the predictions are made, [variant, prediction, d_model]."""
        after = torch.nn.functional.pad(taken, (0, 0, 0, len(text.ids) - self.num_tokens))
        return self.upper.hidden(text.ids.expand(len(taken), -1), text.x - after)[:, text.at]

    def _terms(self, text: _Text, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The terms [variant, prediction] of one piece after the other, and which variants they are of."""
        num_variants, num_predictions = hidden.shape[:2]
        rows = max(1, LOGIT_BYTES // (4 * self.upper.vocabulary))
        for at in _slices(num_predictions, rows):
            for which in _slices(num_variants, max(1, rows // (at.stop - at.start))):
                piece = hidden[which, at]
                logits = self.upper.logits(piece.flatten(0, 1)).unflatten(0, piece.shape[:2])
                yield which, text.terms(logits, at)


def divergence_figure(
    subject: Subject, ids: np.ndarray, x: Tensor, model: int, tokens: Sequence[int], passed_over: Tensor
) -> Figure:
    """The sum of KL(chat ‖ base) over `tokens`, with `model` free to change.

    Without tokens it is the one with the largest divergence, `passed_over: [pos]` bool apart unless that is all.
    ids: [pos] int64; x: [pos, both] unchanged streams.
    """
    num_shared = min(upper.vocabulary for upper in subject.uppers)
    ids_there = torch.from_numpy(ids).to(x.device)
    streams = [x[:, subject.model_slice(each)] for each in (BASE, CHAT)]
    reference = subject.uppers[1 - model].hidden(ids_there[None], streams[1 - model][None])[0]

    def logs(each: int, hidden: Tensor) -> Tensor:
        return log_probabilities(subject.uppers[each].logits(hidden), num_shared)

    if not tokens:
        own = subject.uppers[model].hidden(ids_there[None], streams[model][None])[0]
        base, chat = (own, reference) if model == BASE else (reference, own)
        rows = max(1, LOGIT_BYTES // (4 * max(upper.vocabulary for upper in subject.uppers)))
        pieces = [divergence(logs(CHAT, chat[at]), logs(BASE, base[at])) for at in _slices(len(ids), rows)]
        found = torch.cat(pieces)
        tokens = [int((found if passed_over.all() else found.masked_fill(passed_over, -torch.inf)).argmax())]
    explained = np.array(sorted(tokens), dtype=np.int64)
    at_tokens = torch.from_numpy(explained).to(x.device)

    @lru_cache(maxsize=1)
    def others(start: int, stop: int) -> Tensor:
        return logs(1 - model, reference[at_tokens[start:stop]])

    def terms(logits: Tensor, at: slice) -> Tensor:
        own, other = log_probabilities(logits, num_shared), others(at.start, at.stop)
        return divergence(own, other) if model == CHAT else divergence(other, own)

    length = _length(subject, len(ids), int(explained[-1]) + 1)
    text = _Text(ids_there[:length], streams[model][:length], at_tokens, terms)
    return Figure(subject.uppers[model], [text], explained, min(length, int(explained[-1]) + 1))


def preference_figure(
    subject: Subject, num_tokens: int, texts: Sequence[tuple[np.ndarray, Tensor]], model: int
) -> Figure:
    """`log p(first) - log p(second)` of two continuations of a prompt in `model`, each summed over its tokens.

    texts: the ids [pos] int64 of the prompt's `num_tokens` and a continuation, and the unchanged streams [pos, both].
    """
    signed: list[_Text] = []
    for sign, (ids, x) in zip((1.0, -1.0), texts, strict=True):
        whole = torch.from_numpy(ids).to(x.device)
        at = torch.arange(num_tokens - 1, len(ids) - 1, device=x.device)
        signed.append(_Text(whole, x[:, subject.model_slice(model)], at, _chosen(whole[num_tokens:], sign)))
    return Figure(subject.uppers[model], signed, np.array([num_tokens - 1]), num_tokens)


def _chosen(next_ids: Tensor, sign: float) -> Terms:
    def terms(logits: Tensor, at: slice) -> Tensor:
        wanted = next_ids[at].expand(len(logits), -1)[:, :, None]
        return sign * (logits.gather(2, wanted)[:, :, 0] - logits.logsumexp(dim=2))

    return terms


def _length(subject: Subject, num_tokens: int, needed: int) -> int:
    """Tokens of a text that must run for its first `needed`: all, if the models read a shorter text in another way."""
    before, after = subject.activations.regimes([num_tokens, needed])
    return needed if before == after else num_tokens


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
