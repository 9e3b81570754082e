"""What each model finds most probable next, at the findings. Runs both models on their texts again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crosscope_proto.specs import TokenPolicy
from crosscope_worker.analysis.looks.heads import Heads
from crosscope_worker.analysis.looks.ranking import Finding
from crosscope_worker.data.harvest import harvest
from crosscope_worker.models.activations import PairActivations

NUM_NEXT = 5


@dataclass(frozen=True)
class NextTokens:
    """One model's most probable next tokens, best first."""

    ids: list[int]
    log_probabilities: list[float]


@torch.inference_mode()
def next_tokens(
    heads: Heads,
    activations: PairActivations,
    findings: Sequence[Finding],
    policy: TokenPolicy,
    tokens_per_forward: int,
) -> list[tuple[NextTokens, NextTokens]]:
    """For every finding what base and chat would say next."""
    texts = dict.fromkeys(finding.compared.text for finding in findings)
    found: dict[tuple[int, int], tuple[NextTokens, NextTokens]] = {}
    wanted = {(id(finding.compared.text), finding.position) for finding in findings}
    for window in harvest(texts, activations, policy, tokens_per_forward):
        places = [
            (id(window.texts[text]), position)
            for text, position in zip(window.text.tolist(), window.position.tolist(), strict=True)
        ]
        chosen = [index for index, place in enumerate(places) if place in wanted]
        for at, logs in heads.pieces(window.x[chosen]):
            tops = [each.topk(min(NUM_NEXT, each.shape[1]), dim=1) for each in logs]
            for row, index in enumerate(chosen[at]):
                base, chat = (NextTokens(top.indices[row].tolist(), top.values[row].tolist()) for top in tops)
                found[places[index]] = base, chat
    return [found[id(finding.compared.text), finding.position] for finding in findings]
