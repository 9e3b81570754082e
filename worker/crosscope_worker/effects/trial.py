"""Tries on a few tokens whether a model can be read in pieces, beside other rows and behind padding."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import MODEL_NAMES, TokenRole
from crosscope_worker.effects.changing import Chunk
from crosscope_worker.effects.lane import Lane, Row
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.places import PairError
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, TOLERANCE, probe_ids
from crosscope_worker.models.residual import in_float32
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
    reads in pieces. That is compared in float32: in half precision, equal computations of other shapes differ too, the
    more the deeper the model is.
    """
    named = f"pair {subject.pair.manifest.name!r}: the {MODEL_NAMES[model]} model, "
    named += f"{type(subject.pair.models[model]).__name__}, cannot generate here"
    try:
        cache = _read_in_pieces(subject, model, _probe(subject, model))[0].whole
        with in_float32(subject.pair.models[model]):
            error = _difference(subject, model)
    except Exception as error:  # models raise anything for a cache or a mask that they do not know
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PairError(f"{named}: it does not read a text in pieces ({reason})") from error
    limit = TOLERANCE if getattr(subject.pair.models[model], "hf_quantizer", None) is None else ROUNDED_TOLERANCE
    if not error <= limit:
        raise PairError(
            f"{named}: read in pieces beside another text, its logits differ (by {error:.2g} of their spread, more "
            f"than {limit:g}); it may keep a state that is no cache of keys and values"
        )
    below = 0 if subject.reading is None else cache.bytes_per_token(subject.reading.layer + 1)
    return cache.bytes_per_token(), below


def _probe(subject: Subject, model: int) -> Tensor:
    return probe_ids([subject.pair.models[model]], rows=2)


def _difference(subject: Subject, model: int) -> float:
    """How far the logits of two rows that are read in pieces are from those of plain forwards, by their spread."""
    ids = _probe(subject, model)
    expected = [
        subject.pair.models[model](input_ids=row[None], use_cache=False).logits[0].float()
        for row in (ids[0], ids[1, _PADDING:])
    ]
    _, logits = _read_in_pieces(subject, model, ids)
    plain = [torch.stack([expected[0][end - 1], expected[1][end - 1 - _PADDING]]) for end in _CUTS[1:]]
    return float((logits - torch.stack(plain)).abs().max() / torch.cat(expected).std())


def _read_in_pieces(subject: Subject, model: int, ids: Tensor) -> tuple[Lane[Row], Tensor]:
    """A lane that has read two rows in pieces, and the logits behind each piece: [piece, row, vocabulary] float32."""
    positions = np.stack([np.arange(ids.shape[1]), np.arange(ids.shape[1]) - _PADDING])
    lane: Lane[Row] = Lane(Subject(subject.pair), model)
    lane.add_empty([Row(None, False, 0), Row(None, False, 0)])
    found: list[Tensor] = []
    for start, end in pairwise(_CUTS):
        part = positions[:, start:end]
        chunk = Chunk(
            np.where(part >= 0, ids[:, start:end].cpu().numpy(), 0),
            np.maximum(part, -1),
            np.full(part.shape, TokenRole.TEXT, np.uint8),
            np.zeros(part.shape, bool),
            is_generated=False,
        )
        found.append(lane.read(chunk).logits)
        lane.commit(chunk)
    return lane, torch.stack(found)
