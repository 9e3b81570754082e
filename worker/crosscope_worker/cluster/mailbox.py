"""What ranks on other machines tell a job, by way of an actor that keeps it until it is fetched.

Does not know who listens.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from crosscope_worker.recipes.rank_reports import last_words

EVERY_S = 0.2
"""How often a rank sends what it has to tell, and how often that is fetched."""


class Mailbox:
    """The actor: letters (rank, kind, what) in the order in which they came."""

    def __init__(self) -> None:
        self._letters: list[tuple[int, str, Any]] = []

    def put(self, letters: Sequence[tuple[int, str, Any]]) -> None:
        """Adds letters."""
        self._letters.extend(letters)

    def take(self) -> list[tuple[int, str, Any]]:
        """The letters that nobody has taken."""
        letters, self._letters = self._letters, []
        return letters


class Teller:
    """A rank's way to the mailbox, and the Progress of the first rank. Any thread may call.

    Of reports that stand behind each other and say nothing but how far the work is, the last is sent.
    """

    def __init__(self, mailbox: ActorHandle[Mailbox], rank: int) -> None:
        self._mailbox, self._rank = mailbox, rank
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._letters: list[tuple[int, str, Any]] = []
        self._has_failed = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_on, name="teller", daemon=True)
        self._thread.start()

    def tell(self, kind: str, what: object) -> None:
        """Sends something, and what waits."""
        with self._lock:
            self._letters.append((self._rank, kind, what))
        self._send()

    def fail(self, error: BaseException) -> None:
        """Tells the error that ends this rank; of several the first."""
        if not self._has_failed:
            self._has_failed = True
            self.tell(*last_words(error))

    def close(self) -> None:
        """Sends the rest."""
        self._closed.set()
        self._thread.join()

    def __call__(
        self,
        stage: str,
        fraction: float,
        message: str = "",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        rel_norms: Sequence[int] = (),
    ) -> None:
        """See Progress. Raises nothing: a job that is stopped has its ranks ended."""
        kind = "progress" if message or metrics or rel_norms else "moved"
        named = {"step": step, "metrics": dict(metrics or {}), "rel_norms": list(rel_norms)}
        what = (str(stage), fraction, message), named
        with self._lock:
            if kind == "moved" and self._letters and self._letters[-1][1] == "moved":
                self._letters.pop()
            self._letters.append((self._rank, kind, what))

    def _send_on(self) -> None:
        while not self._closed.wait(EVERY_S):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._sending:
            with self._lock:
                letters, self._letters = self._letters, []
            if not letters:
                return
            try:
                ray.get(self._mailbox.put.remote(letters))
            except RayError:  # The job's process has ended, and nobody waits for this rank.
                os._exit(1)
