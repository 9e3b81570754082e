"""Sentences about texts that a job left out or cut, from the counts in a crosscoder's manifest. Pure strings."""

from collections.abc import Mapping

OTHER = "other reasons"


def left_out(skipped: Mapping[str, Mapping[str, int]], texts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Sentences that say what was lost of each data set; none where nothing was lost.

    `skipped` and `texts` are the fields of CrosscoderManifest.
    """
    sentences: list[str] = []
    for name in dict.fromkeys((*skipped, *texts)):
        reasons, counts = skipped.get(name, {}), texts.get(name, {})
        if refused := sum(reasons.values()):
            read = f"of {_number(counts['read'])} " if counts.get("read") else ""
            were = "was" if refused == 1 else "were"
            sentences.append(f"{_number(refused)} {read}texts of {name} {were} left out: {reasons_line(reasons)}")
        losses = ((sentence, counts.get(key, 0)) for key, sentence in _LOSSES)
        sentences += [sentence.format(count=_number(count), name=name) for sentence, count in losses if count]
    return sentences


_LOSSES = (
    ("cut_tokens", "{count} tokens of {name} lie beyond max_length and were cut off"),
    ("lost_behaviours", "{count} tagged behaviours of {name} lie beyond max_length or have no token"),
    ("without_tokens", "the token policy keeps no token of {count} texts of {name}"),
    ("stopped", "{name} was read up to its max_tokens, {count} ×"),
    ("retries", "{count} reads of {name} failed and were made again"),
)


def reasons_line(reasons: Mapping[str, int], at_most: int = 3) -> str:
    """The `at_most` most frequent reasons with their counts, then the count of all other reasons."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{_number(count)} × {reason}" for reason, count in ordered[:at_most]]
    rest = sum(count for _, count in ordered[at_most:])
    return "; ".join([*parts, f"{_number(rest)} × {OTHER}"] if rest else parts)


def _number(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")
