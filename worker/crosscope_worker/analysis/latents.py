"""The table of latents: every LATENT_COLUMN from sums, decoder rows and chosen examples, a group of columns at a time.

Knows which module computes which column; holds no formulas.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_proto.scaling_columns import beta_column
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.accumulators import Accumulators
from crosscope_worker.analysis.columns import chosen, lists, matrix, plain
from crosscope_worker.analysis.geometry import Geometry, classes, difference_classes, geometry, neighbours
from crosscope_worker.analysis.lens import Lens
from crosscope_worker.analysis.moments import ShardSums
from crosscope_worker.analysis.scaling import Estimates, directions, estimates, jackknife
from crosscope_worker.analysis.uselessness import Uselessness, score
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.tokenizer.pieces import lone_pieces

if TYPE_CHECKING:
    from crosscope_worker.tokenizer.tokens import TextTokenizer

Ints = NDArray[np.int64]
Columns = dict[str, Any]
"""Values of columns by name, [latent]."""


@dataclass(frozen=True)
class Measured:
    """The findings of the analysis, from which the columns are computed."""

    crosscoder: Crosscoder
    passed: Accumulators
    """The sums of the pass."""
    peaks: tuple[Ints, Ints]
    """Ids and counts of examples.top_tokens."""
    contexts: "pa.Array[Any]"
    """Texts of examples.peak_contexts."""
    spec: AnalysisSpec
    tokenizer: "TextTokenizer"
    lenses: Sequence[Lens | None]
    """The lens of each model; None for an empty column."""
    parts: Sequence[str]
    """[latent]; empty for a dictionary without parts."""

    @property
    def sums(self) -> ShardSums:
        """The sums of each shard."""
        return self.passed.shard_sums

    @cached_property
    def num_active(self) -> NDArray[np.uint64]:
        """[latent] number of tokens on which it fired."""
        return self.sums.count.sum(axis=0).astype(np.uint64)

    @cached_property
    def shape(self) -> Geometry:
        """Norms and cosines of the decoder rows."""
        return geometry(self.crosscoder)

    @cached_property
    def estimates(self) -> tuple[Estimates, Estimates]:
        """Every estimate and its standard error."""
        rows = directions(self.crosscoder)
        return jackknife(self.sums, lambda each: estimates(each, rows))

    @cached_property
    def useless(self) -> Uselessness:
        """Base uselessness in its three definitions."""
        errors, beta = self.sums.error[:, CHAT, BASE].sum(axis=0), self.estimates[0][beta_column("", "err", "base")]
        return score(self.crosscoder, self.passed.chat_only, errors, beta, self.spec)


def _ids(found: Measured) -> Columns:
    return {"id": np.arange(found.crosscoder.num_latents, dtype=np.uint32)}


def _kinds(found: Measured) -> Columns:
    rel_norm = found.shape.rel_norm.cpu().numpy()
    return {
        "latent_class": _classes(found.crosscoder, found.estimates[0], rel_norm, found.num_active),
        "part": list(found.parts) or [""] * found.crosscoder.num_latents,
    }


def _rows(found: Measured) -> Columns:
    shape = found.shape
    nearest, cosines = neighbours(found.crosscoder.W_dec)
    return {
        "norm_base": shape.norm_base.cpu().numpy(),
        "norm_chat": shape.norm_chat.cpu().numpy(),
        "rel_norm": shape.rel_norm.cpu().numpy(),
        "cosine": shape.cosine.cpu().numpy(),
        "neighbours": matrix(nearest.cpu().numpy()),
        "neighbour_cosines": matrix(cosines.cpu().numpy()),
    }


def _activity(found: Measured) -> Columns:
    moments = found.passed.moments
    return {
        "num_active": found.num_active,
        "num_texts": moments.num_texts(),
        "max": moments.largest(),
        "repeat_share": moments.repeat_shares(),
        "template_share": moments.template_share(),
        "role_shares": matrix(moments.role_shares()),
        "dataset_shares": matrix(moments.dataset_shares()),
        "histogram": matrix(moments.histogram()[0]),
    }


def _estimates(found: Measured) -> Columns:
    values, errors = found.estimates
    return values | {f"{name}_se": error for name, error in errors.items()}


def _uselessness(found: Measured) -> Columns:
    return {
        "base_uselessness": found.useless.trained,
        "base_uselessness_ls": found.useless.least_squares,
        "base_uselessness_single": found.useless.single,
    }


def _tokens(found: Measured) -> Columns:
    three = np.full(found.crosscoder.num_latents, 3)
    columns = {
        "top_tokens": _pieces(*found.peaks, found.tokenizer),
        "peak_context": lists(three, found.contexts),
    }
    for model, (name, lens) in enumerate(zip(MODEL_NAMES, found.lenses, strict=True)):
        columns[f"logit_tokens_{name}"] = _pieces(*_lens(found.crosscoder, model, lens), found.tokenizer)
    return columns


def _together(found: Measured) -> Columns:
    counts, together, indices = found.passed.coactivation.strongest(found.crosscoder.num_latents)
    return {
        "coactive": lists(counts, plain(together.astype(np.uint32))),
        "coactive_indices": lists(counts, plain(indices)),
    }


def _causal(found: Measured) -> Columns:
    """Not measured yet; `with_columns` puts in what was."""
    nothing = np.full(found.crosscoder.num_latents, np.nan, np.float32)
    return {column.name: nothing for column in CAUSAL_COLUMNS}


GROUPS: tuple[Callable[[Measured], Columns], ...] = (
    _ids,
    _kinds,
    _rows,
    _activity,
    _estimates,
    _uselessness,
    _causal,
    _tokens,
    _together,
)
"""Each function computes some of LATENT_COLUMNS; together they compute every one exactly once."""


def latent_table(found: Measured) -> pa.Table:
    """The table of LATENT_COLUMNS, one row per latent, in the order of ids."""
    columns: Columns = {}
    for group in GROUPS:
        columns |= group(found)
    schema = arrow_schema(LATENT_COLUMNS)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def with_columns(latents: pa.Table, columns: Columns) -> pa.Table:
    """A table of LATENT_COLUMNS, perhaps of an older version, with some of its columns replaced or added."""
    schema = arrow_schema(LATENT_COLUMNS)
    names = [name for name in schema.names if name in latents.column_names or name in columns]
    values: Columns = {name: columns[name] if name in columns else latents.column(name) for name in names}
    fields = [schema.field(name) if name in columns else latents.schema.field(name) for name in names]
    return pa.table(values, schema=pa.schema(fields))


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
