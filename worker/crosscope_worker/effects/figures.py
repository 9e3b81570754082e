"""Figures that attribution explains, as functions of a model's stream at the layer (math §9).

A figure is a sum over predictions: KL(chat ‖ base), or log-probabilities of the tokens of two continuations with a sign
each. Logits are made in pieces of LOGIT_BYTES, also on the way back. Knows no latents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.effects.predictions import divergence, log_probabilities
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.text_cache import TextCache
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


class Unchanged(NamedTuple):
    """What one run of a figure's unchanged texts gives."""

    value: float
    gradient: Tensor
    """[num_tokens, d_model] float32: the figure's, by the stream."""
    caches: tuple[TextCache, ...]
    """Of each text; empty for a model that cannot read a text's end with one."""


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

    def unchanged(self) -> Unchanged:
        """The figure and its gradient; the backward pass runs in the model's own data type."""
        taken = self.texts[0].x.new_zeros(1, self.num_tokens, self.texts[0].x.shape[1], requires_grad=True)
        value, caches = 0.0, list[TextCache]()
        for text in self.texts:
            cache = self.upper.text_cache()
            with torch.enable_grad():
                hidden = self.upper.hidden(*_changed(text, taken, 0), cache)[:, text.at]
                # Each piece goes back to the hidden states at once, so that no more logits are kept than one piece.
                apart = hidden.detach().requires_grad_()
                for _, terms in self._terms(text, apart):
                    terms.sum().backward()
                    value += float(terms.detach().sum(dtype=torch.float64))
            assert apart.grad is not None
            hidden.backward(apart.grad)
            if cache is not None:
                caches.append(cache)
        assert taken.grad is not None
        return Unchanged(value, -taken.grad[0], tuple(caches))

    def effects(self, taken: Tensor, start: int, caches: Sequence[TextCache]) -> Tensor:
        """How much the figure falls when each of `taken` is subtracted from the stream, [variant] float64.

        taken: [variant, num_tokens - start, d_model], from the token `start` on, which is 0 without caches. Nothing
        before that token runs. The unchanged end runs in the same batch, so that rounding in another one is no effect.
        """
        rows = torch.cat([taken.new_zeros(1, *taken.shape[1:]), taken])
        found = torch.zeros(len(rows), dtype=torch.float64, device=taken.device)
        for index, text in enumerate(self.texts):
            ids, x = _changed(text, rows, start)
            at = text.at[text.at >= start] - start
            if caches:
                first = int(at[0])
                hidden = self.upper.last_hidden(ids, x, first, caches[index].before(start))[:, at - first]
            else:
                hidden = self.upper.hidden(ids, x)[:, at]
            for which, terms in self._terms(text, hidden):
                found[which] += terms.sum(dim=1, dtype=torch.float64)
        return found[0] - found[1:]

    def _terms(self, text: _Text, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The terms [variant, prediction] of one piece after the other, and which variants they are of.

        hidden: [variant, prediction, d_model], of the text's last predictions.
        """
        num_variants, num_predictions = hidden.shape[:2]
        skipped = len(text.at) - num_predictions
        rows = max(1, LOGIT_BYTES // (4 * self.upper.vocabulary))
        for at in _slices(num_predictions, rows):
            for which in _slices(num_variants, max(1, rows // (at.stop - at.start))):
                piece = hidden[which, at]
                logits = self.upper.logits(piece.flatten(0, 1)).unflatten(0, piece.shape[:2])
                yield which, text.terms(logits, slice(skipped + at.start, skipped + at.stop))


def _changed(text: _Text, taken: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The ids [variant, pos] and the streams [variant, pos, d_model] of a text from `start` on, without `taken`."""
    ids, x = text.ids[start:], text.x[start:]
    after = torch.nn.functional.pad(taken, (0, 0, 0, len(ids) - taken.shape[1]))
    return ids.expand(len(taken), -1), x - after


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
