"""Answers that models are giving, collected in the background, so that a page can draw what has come so far.

Knows nothing about Streamlit.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing

from crosscope import Answer, Arm, CrosscopeError, Generation, NewToken, Tokens

UNSEEN_S = 90.0
"""A generation that no page has looked at for so long is cancelled: its page is closed, so its place is free."""


class Answering:
    """One generation on a thread of its own, until it has ended, somebody stops it or nobody looks at it any more."""

    def __init__(
        self, ask: Callable[[], Generation], arms: Sequence[Arm], num_samples: int, *, unseen_s: float = UNSEEN_S
    ) -> None:
        self.arms, self.num_samples = tuple(arms), num_samples
        self.error: CrosscopeError | None = None
        """Why it failed, if it did."""
        self.answers: list[Answer] = []
        """The answers, once it is over; empty before, and where none could be given."""
        self.prompt: Tokens | None = None
        """The tokens of the prompt, once they have come."""
        self._ask, self._unseen_s = ask, unseen_s
        self._tokens: defaultdict[tuple[int, int], list[NewToken]] = defaultdict(list)
        self._is_stopped = threading.Event()
        self._seen_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with closing(self._ask()) as generation:
                self.prompt = generation.prompt
                for token in generation:
                    self._tokens[token.arm, token.sample].append(token)
                    if self._is_stopped.is_set() or time.monotonic() - self._seen_at > self._unseen_s:
                        break
                generation.close()
                self.answers = generation.answers
        except CrosscopeError as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        """Whether no more will come."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Cancels what has not come yet; what has come stays."""
        self._is_stopped.set()

    @property
    def is_stopping(self) -> bool:
        """Whether somebody has stopped it."""
        return self._is_stopped.is_set()

    def tokens(self, arm: int, sample: int) -> tuple[NewToken, ...]:
        """The tokens of one answer that have come. Notes that somebody looks."""
        self._seen_at = time.monotonic()
        return tuple(self._tokens.get((arm, sample), ()))

    def wait(self, timeout_s: float) -> bool:
        """Waits until it is over, at most `timeout_s`; returns whether it is."""
        self._thread.join(timeout_s)
        return self.is_over
