"""Texts that are refused for their length before they are tokenised whole. Knows no roles and no templates."""

from crosscope_worker.tokenizer.control_tokens import ControlTokens, PromptError

_WINDOW = 16_384
"""Characters that are tokenised at once."""
_MARGIN = 2
"""A text that is cut into windows may have other tokens at the cuts, and a few more; so it may have many more."""
UNCOUNTED = 4
"""Characters for each token of a limit, up to which a text is tokenised at once: that takes milliseconds."""


class TooLong(PromptError):
    """A text that has more tokens than it may have; nobody knows how many."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the text has at least {most + 1} tokens, but may have {most}; shorten it")
        self.at_least = most + 1


def check_length(control: ControlTokens, text: str, most: int | None) -> None:
    """Raises TooLong for a text that has more than `most` tokens, before it is tokenised whole.

    It counts window by window, and stops as soon as there are twice as many: so it takes time and memory for that
    many tokens, however long the text is. A text that gets through may still have more than `most`, but not many times
    as many. None: no limit. Holds for every tokenizer, because it counts and assumes nothing about the vocabulary.
    """
    if most is None or len(text) <= UNCOUNTED * most:
        return
    count = 0
    for start in range(0, len(text), _WINDOW):
        count += len(control.encode(text[start : start + _WINDOW], is_disguised=False).ids)
        if count > _MARGIN * most:
            raise TooLong(most)
