"""The table of latents: every LATENT_COLUMN from sums, decoder rows and chosen examples.

Knows which module computes which column; no formulas.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crosscope_proto.artefacts import LATENT_COLUMNS, arrow_schema, beta_column
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.coactivation import CoActivation
from crosscope_worker.analysis.columns import chosen, lists, matrix
from crosscope_worker.analysis.geometry import classes, difference_classes, geometry, neighbours
from crosscope_worker.analysis.lens import Lens
from crosscope_worker.analysis.moments import Moments, ShardSums
from crosscope_worker.analysis.scaling import Estimates, directions, estimates, jackknife
from crosscope_worker.analysis.uselessness import ChatOnlySums, score
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.tokenizer.pieces import lone_pieces

if TYPE_CHECKING:
    from crosscope_worker.tokenizer.tokens import TextTokenizer

Ints = NDArray[np.int64]


def latent_table(
    crosscoder: Crosscoder,
    moments: Moments,
    sums: ShardSums,
    chat_only: ChatOnlySums,
    coactivation: CoActivation,
    peaks: tuple[Ints, Ints],
    spec: AnalysisSpec,
    tokenizer: "TextTokenizer",
    lenses: Sequence[Lens | None],
    parts: Sequence[str],
) -> tuple[pa.Table, dict[str, float]]:
    """The table of LATENT_COLUMNS, a row a latent by id, and the facts about base uselessness.

    `peaks` are the ids and counts of examples.top_tokens; `lenses` those of both models, None for an empty column;
    `parts: [latent]` are empty where the dictionary has none.
    """
    rows = directions(crosscoder)
    values, errors = jackknife(sums, lambda each: estimates(each, rows))
    useless = score(
        crosscoder, chat_only, sums.error[:, CHAT, BASE].sum(axis=0), values[beta_column("", "err", "base")], spec
    )
    num_active = sums.count.sum(axis=0).astype(np.uint64)
    shape = geometry(crosscoder)
    rel_norm = shape.rel_norm.cpu().numpy()
    nearest, cosines = neighbours(crosscoder.W_dec)
    together, indices = coactivation.strongest(crosscoder.num_latents)
    columns: dict[str, Any] = {
        "id": np.arange(crosscoder.num_latents, dtype=np.uint32),
        "latent_class": _classes(crosscoder, values, rel_norm, num_active),
        "part": list(parts) or [""] * crosscoder.num_latents,
        "norm_base": shape.norm_base.cpu().numpy(),
        "norm_chat": shape.norm_chat.cpu().numpy(),
        "rel_norm": rel_norm,
        "cosine": shape.cosine.cpu().numpy(),
        "num_active": num_active,
        "max": moments.largest(),
        "repeat_share": moments.repeat_shares(),
        "base_uselessness": useless.trained,
        "base_uselessness_ls": useless.least_squares,
        "base_uselessness_single": useless.single,
        "template_share": moments.template_share(),
        "role_shares": matrix(moments.role_shares()),
        "dataset_shares": matrix(moments.dataset_shares()),
        "histogram": matrix(moments.histogram()[0]),
        "top_tokens": _pieces(*peaks, tokenizer),
        "neighbours": matrix(nearest.cpu().numpy()),
        "neighbour_cosines": matrix(cosines.cpu().numpy()),
        "coactive": _ragged(together, np.uint32),
        "coactive_indices": _ragged(indices, np.float32),
    }
    columns |= values | {f"{name}_se": error for name, error in errors.items()}
    for model, (name, lens) in enumerate(zip(MODEL_NAMES, lenses, strict=True)):
        columns[f"logit_tokens_{name}"] = _pieces(*_lens(crosscoder, model, lens), tokenizer)
    schema = arrow_schema(LATENT_COLUMNS)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema), useless.facts


def _ragged(rows: "Sequence[NDArray[Any]]", dtype: type[np.generic]) -> "pa.Array[Any]":
    return lists(np.array([len(row) for row in rows]), pa.array(np.concatenate([*rows, []]).astype(dtype)))


def _classes(
    crosscoder: Crosscoder, values: Estimates, rel_norm: NDArray[np.floating], num_active: NDArray[np.integer]
) -> NDArray[np.str_]:
    if crosscoder.streams.is_difference:
        return difference_classes(values["beta_ratio"], num_active)
    return classes(rel_norm, num_active)


def _lens(crosscoder: Crosscoder, model: int, lens: Lens | None) -> tuple[Ints, Ints]:
    """Ids and counts of a model's logit lens; nothing for a zero row, and nothing at all without a lens."""
    counts = np.zeros(crosscoder.num_latents, np.int64)
    ids = np.empty(0, np.int64)
    if lens is not None:
        rows = crosscoder.decoder(model)
        some = rows.norm(dim=1) > 0
        found = lens.tokens(rows[some]).cpu().numpy()
        counts[some.cpu().numpy()] = found.shape[1]
        ids = found.reshape(-1)
    return ids, counts


def _pieces(ids: Ints, counts: Ints, tokenizer: "TextTokenizer") -> "pa.Array[Any]":
    vocabulary, inverse = np.unique(ids, return_inverse=True)
    return lists(counts, chosen(lone_pieces(tokenizer, vocabulary), inverse.reshape(-1)))
