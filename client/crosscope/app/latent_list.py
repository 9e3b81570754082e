"""A table of latents with their evidence, for pages that are about several latents at once."""

from collections.abc import Sequence

import numpy as np

from crosscope import CrosscoderInfo
from crosscope.app import session, tables, words
from crosscope.app.columns import evidence
from crosscope.app.table_view import MAX_HEIGHT, Column, table_view


def latent_list(
    key: str,
    label: str,
    ids: np.ndarray,
    info: CrosscoderInfo,
    links: Sequence[str],
    *,
    more: Sequence[Column] = (),
    chosen: int = -1,
    max_height: int = MAX_HEIGHT,
) -> None:
    """Draws latents `ids` with at most two columns `more`, then the evidence for their class in one: six in all.

    Row i links to `links[i]`; `chosen` is the latent that the page is about.
    """
    columns = session.atlas(info.name, info.version_id)
    shown = [name for name in evidence(columns) if name in tables.BARS]
    floor, called = session.uselessness_floor(info), words.cells(info, ids)
    rows = tables.of_latents(ids, columns, shown, floor=floor, more=more, names_of_latents=called)
    row = int(np.flatnonzero(ids == chosen)[0]) if chosen in ids else None
    table_view(key, label, rows, links, chosen=row, max_height=max_height)
