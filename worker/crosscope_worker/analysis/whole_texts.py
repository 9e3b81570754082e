"""Whole texts on which both models run: batches of them, activations at one layer, and the predictions that count.

A prediction counts if it is made at a token that the token policy keeps, and there is a next token. Knows no
crosscoder.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import TEMPLATE_ROLES, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.analysis.behaviours import assistant_turns
from crosscope_worker.data.harvest import check_finite
from crosscope_worker.data.texts import Text
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.tokenizer.token_policy import policy_positions

BATCH_TOKENS = 2048
"""Tokens of one forward, padding included; a longer text runs alone."""
FIRST_TOKENS = 9
"""Number of first tokens of an assistant message that the figures ending in first9 are about."""


@dataclass(frozen=True, eq=False)
class WholeTexts:
    """Texts side by side, right-padded; all of them conversations or none. Tensors are [batch, pos]."""

    ids: Tensor
    x: Tensor
    """[batch, pos, both] float32."""
    kept: Tensor
    """bool: the policy keeps the token."""
    predicts: Tensor
    """bool: kept, and there is a next token."""
    groups: dict[str, Tensor]
    """bool, subsets of `predicts`: predictions of assistant content, predictions of its first tokens, and predictions
    made at template tokens. Empty if the texts are no conversations."""


@dataclass(frozen=True, eq=False)
class Splicing:
    """The models, and the texts on which they run again with something in place of their activations."""

    activations: PairActivations
    texts: Iterable[Text]
    policy: TokenPolicy
    norms: NormFilter | None = None
    """The filter of the analysis: its bounds leave out the same tokens here. Without bounds, they are measured on the
    first batch."""


def batches(
    texts: Iterable[Text], num_tokens: int, policy: TokenPolicy, activations: PairActivations
) -> Iterator[list[Text]]:
    """Batches of whole texts with at least `num_tokens` tokens that the policy keeps, outliers included.

    Conversations have batches of their own, and so do texts of different regimes.
    """
    waiting: defaultdict[tuple[bool, int], list[Text]] = defaultdict(list)
    seen = 0
    for text in texts:
        kind = bool((text.roles == TokenRole.ASSISTANT).any()), activations.regimes([len(text.ids)])[0]
        longest = max(len(each.ids) for each in [*waiting[kind], text])
        if waiting[kind] and longest * (len(waiting[kind]) + 1) > BATCH_TOKENS:
            yield waiting.pop(kind)
        waiting[kind].append(text)
        seen += len(policy_positions(text.roles, policy))
        if seen >= num_tokens:
            break
    yield from filter(None, waiting.values())


def read(texts: Sequence[Text], activations: PairActivations, policy: TokenPolicy, norms: NormFilter) -> WholeTexts:
    """Both models' activations of some texts, run side by side. Raises HarvestError where one is not finite."""
    lengths = [len(text.ids) for text in texts]
    shape = (len(texts), max(lengths))
    ids, roles, kept = np.zeros(shape, np.int64), np.zeros(shape, np.uint8), np.zeros(shape, bool)
    assistant, first = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, text in enumerate(texts):
        ids[row, : lengths[row]], roles[row, : lengths[row]] = text.ids, text.roles
        kept[row, policy_positions(text.roles, policy)] = True
        for start, end in assistant_turns(text.roles):
            assistant[row, start:end] = True
            first[row, start : min(end, start + FIRST_TOKENS)] = True
    rows, positions = kept.nonzero()
    x = activations(torch.from_numpy(ids), torch.tensor(lengths))
    flat = x[torch.from_numpy(rows), torch.from_numpy(positions)]
    check_finite(flat, activations, texts, rows, positions)
    norms.measure([(flat, positions)])
    (stay,) = norms([(flat, positions)])
    kept[rows[~stay], positions[~stay]] = False
    predicts = kept & (np.arange(shape[1]) < np.array(lengths)[:, None] - 1)
    template = np.isin(roles, [*TEMPLATE_ROLES])
    made_at = {"all": _predicting(assistant), "first9": _predicting(first), "template": template}

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(x.device)

    groups = {name: tensor(where & predicts) for name, where in made_at.items()} if assistant.any() else {}
    return WholeTexts(tensor(ids), x, tensor(kept), tensor(predicts), groups)


def _predicting(tokens: np.ndarray) -> np.ndarray:
    """[batch, pos] bool: whether the next token is one of `tokens`."""
    result = np.zeros_like(tokens)
    result[:, :-1] = tokens[:, 1:]
    return result
