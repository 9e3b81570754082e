"""What a latent is called: the label that somebody gave it, else the text around its strongest peak."""

from collections.abc import Sequence

from crosscope._tables import marked, visible

_MOST = 16
"""Characters on each side of the peak."""


def latent_name(label: str, peak_context: Sequence[str], top_tokens: Sequence[str]) -> str:
    """The label; else the strongest peak in its text, as in "I **cannot** help"; else tokens at its peaks; else "".

    `peak_context` holds the text before the peak, the peak and the text behind it, or nothing.
    """
    if label:
        return label
    if len(peak_context) == 3 and peak_context[1]:
        before, peak, behind = peak_context
        core = peak.strip(" ")
        if not core:
            return _spaced(before, f"**{visible(peak)}**", behind)
        left, _, right = peak.partition(core)
        return _spaced(before + left, f"**{_line(core)}**", right + behind)
    named = [visible(token.strip(" ") or token) for token in top_tokens[:3] if token]
    return ", ".join(f"**{token}**" for token in named)


def _spaced(before: str, peak: str, behind: str) -> str:
    left, right = _line(before).lstrip(" "), _line(behind).rstrip(" ")
    left = f"…{left[-_MOST:]}" if len(left) > _MOST else left
    right = f"{right[:_MOST]}…" if len(right) > _MOST else right
    return f"{left}{peak}{right}"


def _line(text: str) -> str:
    """A text on one line; blanks stay blanks, other white space becomes signs."""
    return " ".join(marked(part) for part in text.split(" "))
