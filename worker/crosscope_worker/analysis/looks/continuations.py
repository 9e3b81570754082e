"""Greedy continuations of both models, by transformers' own `generate`. Does not know why the prompts were chosen."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from crosscope_worker.models.pair import Pair
from crosscope_worker.work import is_out_of_memory


class ContinuationError(ValueError):
    """A model that cannot continue a prompt; the message names its class and says why."""


@dataclass(frozen=True)
class Answer:
    """What a model says."""

    text: str
    """Without special tokens."""
    ended: bool
    """Whether it ended by itself."""


def answers(pair: Pair, ids: np.ndarray, max_new_tokens: int) -> tuple[Answer, Answer]:
    """What both models say after `ids: [pos]`, base first; cut to what both can read. Raises ContinuationError."""
    room = max_new_tokens if pair.max_positions is None else min(max_new_tokens, pair.max_positions - len(ids))
    if room < 1:
        return Answer("", False), Answer("", False)
    ends = sorted({end for model in pair.models for end in _ends(model)} | _known_end(pair))
    base, chat = (_answer(pair, model, ids, room, ends) for model in pair.models)
    return base, chat


def _answer(pair: Pair, model: PreTrainedModel, ids: np.ndarray, room: int, ends: list[int]) -> Answer:
    given = torch.from_numpy(ids)[None].to(pair.device)
    pad = pair.tokenizer.pad_token_id
    try:
        with torch.inference_mode():
            made = model.generate(  # pyright: ignore[reportCallIssue]
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=room,
                eos_token_id=ends or None,
                pad_token_id=pad if pad is not None else next(iter(ends), 0),
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ContinuationError(
            f"{type(model).__name__} cannot generate: {' '.join(str(error).split())[:200]}"
        ) from error
    new = made[0, len(ids) :].tolist()
    ended = bool(new) and new[-1] in ends
    return Answer(str(pair.tokenizer.decode(new, skip_special_tokens=True)), ended)


def _ends(model: PreTrainedModel) -> list[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return [] if found is None else found if isinstance(found, list) else [found]


def _known_end(pair: Pair) -> set[int]:
    end = pair.tokenizer.eos_token_id
    return set() if not isinstance(end, int) else {end}
