"""How the predictions and streams of both models differ at every token of prompts (math §9).

Runs both models whole once on a padded batch; logits are made in pieces of LOGIT_BYTES, about eight of which lie in
memory. The figures need no log-probabilities of whole vocabularies. Knows no requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_worker.effects.contributions import code_of
from crosscope_worker.effects.predictions import log_probabilities
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.pair import decoder_layers
from crosscope_worker.models.places import PairError
from crosscope_worker.models.residual import stream

LOGIT_BYTES = 32 << 20
CACHED_BYTES = 2 << 20
"""On the CPU, size of a piece of logits that is read several times, so that it stays in the cores' caches."""
_Columns = dict[str, Tensor]
"""Figures of tokens by name, [token, ...] each."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """One model's predictions at every token of a prompt; see ModelPredictions in effects.proto."""

    log_probabilities: np.ndarray
    """[pos] float32; NaN at the last token."""
    ranks: np.ndarray
    """[pos] int64, from 1; 0 at the last token."""
    entropies: np.ndarray
    """[pos] float32, nats."""
    top_ids: np.ndarray
    """[pos, top_n] int64, best first."""
    top_log_probabilities: np.ndarray
    """[pos, top_n] float32."""
    norms: np.ndarray
    """[pos] float32; empty without a layer."""
    error_norms: np.ndarray
    """[pos] float32; empty without a crosscoder that reconstructs this model."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Both models' predictions at every token of a prompt; see CompareResponse in effects.proto."""

    base: Predictions
    chat: Predictions
    kl_chat_base: np.ndarray
    """[pos] float32, nats."""
    kl_base_chat: np.ndarray
    """[pos] float32, nats."""
    difference_norms: np.ndarray
    """[pos] float32; empty if the widths differ, or without a layer."""
    cosines: np.ndarray
    """[pos] float32; empty likewise."""


@torch.inference_mode()
def compare(subject: Subject, prompts: Sequence[np.ndarray], top_n: int) -> list[Comparison]:
    """The comparison of each of `prompts`, [pos] int64 ids with at least one token each.

    `top_n` next tokens a token, or as many as there are. A comparison does not depend on the other prompts; those of
    different regimes run apart (PairActivations). Raises PairError for ids that a model cannot read, for a model whose
    hidden states and head cannot be run apart, and where vocabularies differ in more than padding.
    """
    regimes = np.array(subject.activations.regimes([len(ids) for ids in prompts]))
    found: dict[int, Comparison] = {}
    for regime in np.unique(regimes):
        some = np.flatnonzero(regimes == regime).tolist()
        found |= zip(some, _compared(subject, [prompts[index] for index in some], top_n), strict=True)
    return [found[index] for index in range(len(prompts))]


def _compared(subject: Subject, prompts: Sequence[np.ndarray], top_n: int) -> list[Comparison]:
    lengths = np.array([len(ids) for ids in prompts])
    inside = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
    ids = torch.zeros(inside.shape, dtype=torch.int64)
    ids[inside] = torch.from_numpy(np.concatenate(prompts))
    subject.activations.check_ids(ids)
    inside, ids = inside.to(subject.pair.device), ids.to(subject.pair.device)
    runs = [_run(subject, model, ids, inside) for model in (BASE, CHAT)]
    hidden = [hidden for hidden, _ in runs]
    columns = _predictions(subject, hidden, ids.roll(-1, dims=1)[inside], top_n)
    if subject.reading is not None:
        columns |= _streams(subject.reading, torch.cat([x for _, x in runs], dim=1))
    last = torch.from_numpy(np.cumsum(lengths) - 1)
    for name in MODEL_NAMES:
        columns[f"{name}.log_probabilities"][last] = torch.nan
        columns[f"{name}.ranks"][last] = 0
    parts = {name: np.split(column.numpy(), np.cumsum(lengths)[:-1]) for name, column in columns.items()}
    return [_comparison({name: part[index] for name, part in parts.items()}) for index in range(len(prompts))]


def _run(subject: Subject, model: int, ids: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The head's input and the stream at the layer (float32; empty without a reading), both [token, d_model]."""
    if subject.reading is None:
        hidden = subject.wholes[model].hidden(ids)
        return hidden[inside], hidden.new_empty(0)
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(stream(output))

    layer = decoder_layers(subject.pair.models[model])[subject.reading.layer]
    with layer.register_forward_hook(keep):
        hidden = subject.wholes[model].hidden(ids)
    if len(found) != 1:
        raise PairError(
            f"{type(subject.pair.models[model]).__name__} runs its decoder layer {subject.reading.layer} {len(found)} "
            "times for a text, not once"
        )
    return hidden[inside], found[0].to(inside.device)[inside].float()


class _Distribution(NamedTuple):
    """One model's predictions at some tokens; the log-probability of an id is its logit less `log_total`."""

    logits: Tensor
    """[token, vocabulary] float32, less the token's largest, so that likely ids have logits near 0."""
    probabilities: Tensor
    """[token, vocabulary] float32."""
    log_total: Tensor
    """[token] float64."""

    @classmethod
    def of(cls, logits: Tensor) -> Self:
        """That of `logits: [token, vocabulary]` float32, which are overwritten."""
        logits = logits.sub_(logits.amax(dim=1, keepdim=True))
        probabilities = logits.softmax(dim=1)
        # The largest probability is 1 over the total.
        return cls(logits, probabilities, -probabilities.amax(dim=1).double().log())


def _predictions(subject: Subject, hidden: Sequence[Tensor], next_ids: Tensor, top_n: int) -> _Columns:
    """Figures of both models' predictions, on the CPU; hidden: [token, d_model] each, next_ids: [token]."""
    num_shared = min(subject.vocabularies)
    rows = max(1, LOGIT_BYTES // (4 * max(subject.vocabularies)))
    pieces: list[_Columns] = []
    for start in range(0, len(next_ids), rows):
        at = slice(start, start + rows)
        both = [_shared(subject.wholes[model].logits(hidden[model][at]), num_shared) for model in (BASE, CHAT)]
        some = max(1, CACHED_BYTES // (4 * num_shared)) if next_ids.device.type == "cpu" else rows
        for *logits, came in zip(*(each.split(some) for each in (*both, next_ids[at])), strict=True):
            pieces.append(_figures([_Distribution.of(each) for each in logits], came, min(top_n, num_shared)))
    return {name: torch.cat([piece[name] for piece in pieces]).cpu() for name in pieces[0]}


def _shared(logits: Tensor, num_shared: int) -> Tensor:
    """The logits of the ids that both models have, [token, num_shared]; see log_probabilities."""
    return logits if logits.shape[1] == num_shared else log_probabilities(logits, num_shared)


def _figures(models: Sequence[_Distribution], next_ids: Tensor, top_n: int) -> _Columns:
    """The figures of some tokens; models: base and chat."""
    found: dict[str, Tensor] = {}
    difference = models[CHAT].logits - models[BASE].logits
    totals = models[CHAT].log_total - models[BASE].log_total
    for name, (logits, p, log_total), ours in zip(MODEL_NAMES, models, (-1, 1), strict=True):
        # A divergence is never negative, but rounding can be; so with entropies.
        divergence = ours * (_dot(p, difference) - totals)
        found["kl_base_chat" if ours < 0 else "kl_chat_base"] = divergence.clamp_min_(0.0).float()
        found[f"{name}.entropies"] = (log_total - _dot(p, logits)).clamp_min_(0.0).float()
        came = logits.gather(1, next_ids[:, None])
        found[f"{name}.log_probabilities"] = (came[:, 0] - log_total).float()
        # Ones and zeros as float32 add up faster than as bool, and exactly up to 2^24 ids.
        above = torch.gt(logits, came, out=torch.empty_like(logits))
        found[f"{name}.ranks"] = above.sum(dim=1).long() + 1
        top, found[f"{name}.top_ids"] = logits.topk(top_n, dim=1)
        found[f"{name}.top_log_probabilities"] = (top - log_total[:, None]).float()
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Products of the rows of `a` and `b`, [token]."""
    return torch.linalg.vecdot(a, b)


def _streams(reading: Reading, x: Tensor) -> _Columns:
    """Figures of the streams `x: [token, both]`, on the CPU."""
    crosscoder, found = reading.crosscoder, dict[str, Tensor]()
    base, chat = (x[:, crosscoder.model_slice(model)] for model in (BASE, CHAT))
    found["base.norms"], found["chat.norms"] = base.norm(dim=1), chat.norm(dim=1)
    if base.shape == chat.shape:
        found["difference_norms"] = (chat - base).norm(dim=1)
        found["cosines"] = torch.cosine_similarity(base, chat, dim=1)
    if crosscoder.streams.reconstructs:
        code = code_of(reading, x)
        error = x - crosscoder.restored(crosscoder.decode_sparse(code, reading.sparsifier.kept_by(code)))
        for model in crosscoder.streams.reconstructs:
            found[f"{MODEL_NAMES[model]}.error_norms"] = error[:, crosscoder.model_slice(model)].norm(dim=1)
    return {name: column.cpu() for name, column in found.items()}


def _comparison(columns: dict[str, np.ndarray]) -> Comparison:
    """One prompt's figures; a column that is missing is empty."""
    nothing = np.zeros(0, np.float32)

    def predictions(name: str) -> Predictions:
        fields = Predictions.__dataclass_fields__
        return Predictions(**{field: columns.get(f"{name}.{field}", nothing) for field in fields})

    both = {field: columns.get(field, nothing) for field in Comparison.__dataclass_fields__ if field not in MODEL_NAMES}
    return Comparison(predictions(MODEL_NAMES[BASE]), predictions(MODEL_NAMES[CHAT]), **both)
