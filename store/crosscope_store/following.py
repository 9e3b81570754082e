"""A thread that looks again and again what a store holds. Knows no gRPC."""

import logging
import threading

from crosscope_store.errors import StoreError
from crosscope_store.shelf import Shelf

EVERY_S = 5.0
"""Seconds between two looks; what another machine publishes shows after that."""

log = logging.getLogger(__name__)


class Following:
    """Keeps a shelf as new as its store. A shelf without one needs no thread and gets none."""

    def __init__(self, shelf: Shelf, every_s: float = EVERY_S) -> None:
        """Starts nothing."""
        self._shelf, self._every_s = shelf, every_s
        self._stopping, self._looked = threading.Event(), threading.Event()
        self._told = ""

    def start(self) -> None:
        """Looks from now on, also if the store does not answer."""
        if self._shelf.is_shared:
            # A daemon, since a store that hangs must not keep the process.
            threading.Thread(target=self._run, name="store", daemon=True).start()
        else:
            self._looked.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether the first look has ended within a time."""
        return self._looked.wait(timeout_s)

    def stop(self) -> None:
        """Looks no more, and waits for nobody."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            failure = ""
            try:
                self._shelf.refresh()
            except StoreError:
                pass  # `standing` says it
            except OSError as error:  # the home's disk
                failure = f"copies cannot be written: {error}"
            except Exception as error:  # a bug, here or in a library: the next look may go well
                failure = f"a look at it failed with {type(error).__name__}"
                if failure != self._told:
                    log.exception("a look at the store failed")
            self._tell(failure)
            self._looked.set()
            self._stopping.wait(self._every_s)

    def _tell(self, failure: str) -> None:
        standing = self._shelf.standing()
        sentence = failure or ("" if standing is None else standing.sentence)
        if sentence != self._told:
            log.warning("store: %s", sentence or "all is well again")
            self._told = sentence
