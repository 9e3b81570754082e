"""Tries on a few tokens whether a model can be read in pieces, beside other rows and behind padding."""

from itertools import pairwise

import numpy as np
import torch

from crosscope_proto.roles import MODEL_NAMES, TokenRole
from crosscope_worker.effects.changing import Chunk
from crosscope_worker.effects.lane import Lane, Row
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.places import PairError
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, TOLERANCE, probe_ids
from crosscope_worker.work import is_out_of_memory

_CUTS = (0, 5, 11, 12)
_PADDING = 4
"""Padding of the second row: its first piece holds one token."""


TokenBytes = tuple[tuple[int, int], tuple[int, int]]
"""`bytes_per_token` of base and chat."""


@torch.inference_mode()
def bytes_per_token(subject: Subject, model: int) -> tuple[int, int]:
    """Bytes of cache that one token takes in the whole model, and in the model up to the layer (0 without a reading).

    Raises PairError, with the model's class and the reason, if it does not give the logits of a plain forward when it
    reads in pieces.
    """
    named = f"pair {subject.pair.manifest.name!r}: the {MODEL_NAMES[model]} model, "
    named += f"{type(subject.pair.models[model]).__name__}, cannot generate here"
    try:
        lane, error = _difference(subject, model)
    except Exception as error:  # models raise anything for a cache or a mask that they do not know
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PairError(f"{named}: it does not read a text in pieces ({reason})") from error
    is_exact = subject.pair.models[model].dtype == torch.float32
    if not error <= (TOLERANCE if is_exact else ROUNDED_TOLERANCE):
        raise PairError(
            f"{named}: read in pieces beside another text, its logits differ (by {error:.2g} of their spread); it may "
            "keep a state that is no cache of keys and values"
        )
    below = 0 if subject.reading is None else lane.whole.bytes_per_token(subject.reading.layer + 1)
    return lane.whole.bytes_per_token(), below


def _difference(subject: Subject, model: int) -> tuple[Lane[Row], float]:
    """A lane that has read two rows in pieces, and how far its logits are from those of plain forwards."""
    ids = probe_ids([subject.pair.models[model]], rows=2)
    positions = np.stack([np.arange(ids.shape[1]), np.arange(ids.shape[1]) - _PADDING])
    lane: Lane[Row] = Lane(Subject(subject.pair), model)
    lane.add_empty([Row(None, False, 0), Row(None, False, 0)])
    expected = [
        subject.pair.models[model](input_ids=row[None], use_cache=False).logits[0].float()
        for row in (ids[0], ids[1, _PADDING:])
    ]
    spread = float(torch.cat(expected).std())
    worst = 0.0
    for start, end in pairwise(_CUTS):
        part = positions[:, start:end]
        chunk = Chunk(
            np.where(part >= 0, ids[:, start:end].cpu().numpy(), 0),
            np.maximum(part, -1),
            np.full(part.shape, TokenRole.TEXT, np.uint8),
            np.zeros(part.shape, bool),
            is_generated=False,
        )
        logits = lane.read(chunk).logits
        lane.commit(chunk)
        plain = torch.stack([expected[0][end - 1], expected[1][end - 1 - _PADDING]])
        worst = max(worst, float((logits - plain).abs().max()) / spread)
    return lane, worst
