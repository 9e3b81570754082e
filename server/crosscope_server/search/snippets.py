"""Shows where a latent was found: the match, and the text around it."""

from collections.abc import Iterator
from dataclasses import dataclass

from crosscope_server.latents import LatentTable
from crosscope_server.search.finding import TOKEN_COLUMNS, Found, InExamples, Place, Words
from crosscope_server.search.index import Index
from crosscope_server.search.pattern import Pattern

AROUND = 80
"""Characters of a text on each side of a match."""


@dataclass(frozen=True)
class Snippet:
    """One match of a latent."""

    place: Place
    before: str
    matched: str
    behind: str
    activation: float | None = None
    """Of an example: the largest activation on the match; None: none."""
    sequence: int | None = None
    """Of an example: its row in sequences.parquet."""
    token_start: int = 0
    token_end: int = 0
    """Behind the last token of the match."""


def snippets(
    found: Found, latent: int, pattern: Pattern, table: LatentTable, words: Words, index: Index | None
) -> Iterator[Snippet]:
    """One snippet for each place where a latent was found."""
    for place, mask in found.masks.items():
        if not mask[latent]:
            continue
        if place == Place.EXAMPLE and found.examples is not None and index is not None:
            yield _of_example(found.examples, latent, pattern, index)
            continue
        texts = [words[place][latent]] if place in words else table.tokens(TOKEN_COLUMNS[place], [latent])[0]
        before, matched, behind = next(cut for cut in map(pattern.cut, texts) if cut is not None)
        yield Snippet(place, before[-AROUND:], matched, behind[:AROUND])


def _of_example(examples: InExamples, latent: int, pattern: Pattern, index: Index) -> Snippet:
    match = int(examples.best[latent])
    text = int(examples.text[match])
    first, last = int(examples.first_token[match]), int(examples.last_token[match])
    origin = int(index.text_starts[text])
    raw = index.raw[text].as_py().encode()
    start, end = int(examples.start[match]), int(examples.end[match])
    if pattern.is_folded:
        base = int(index.raw_ends[origin - 1]) if origin else 0
        low = (int(index.raw_ends[first - 1]) if first else 0) - base
        high = int(index.raw_ends[last]) - base
        cut = pattern.cut(raw[low:high].decode())
        assert cut is not None, "the tokens of a match have it"
        start = low + len(cut[0].encode())
        end = start + len(cut[1].encode())
    activation = float(examples.activation[latent])
    return Snippet(
        Place.EXAMPLE,
        raw[:start].decode()[-AROUND:],
        raw[start:end].decode(),
        raw[end:].decode()[:AROUND],
        activation if activation > 0 else None,
        text,
        first - origin,
        last + 1 - origin,
    )
