"""Labels that jobs have made: they wait as files below the home, and are taken in before words are read or written.

So whoever asks after a job has ended finds its labels, with whichever server. A file goes once its labels are on disk;
taken in twice, by two servers or after a kill, it changes nothing the second time. It holds automatic labels alone, so
no person's words can change. Knows nothing about SQL.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from crosscope_proto.labels import FOLDER, MAX_BYTES, SUFFIX, LabelsError, MadeLabels, parse_labels
from crosscope_server.annotations.records import Dictionary, LatentWords, Said, What
from crosscope_server.annotations.transfer import Options, Row
from crosscope_server.errors import CallError

REFUSED = ".refused"
"""Ending that a file gets which cannot be read."""
PAUSE_S = 5.0
"""After a failure nothing is tried for so long; files stay where they are."""

Write = Callable[[Dictionary, Sequence[Row], Options], Awaitable[object]]
"""Writes rows among the words. Raises Unavailable or Conflict."""

log = logging.getLogger(__name__)


class Deliveries:
    """The labels that wait below a home."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER
        self._not_before = 0.0

    async def take_in(self, write: Write) -> None:
        """Writes all labels that wait, oldest first. A failure is logged, and the files stay."""
        if time.monotonic() < self._not_before:
            return
        try:
            for path in self._waiting():
                await self._take(path, write)
        except (OSError, CallError) as error:
            self._not_before = time.monotonic() + PAUSE_S
            log.warning("labels in %s were not taken in: %s", self._folder, error)

    def _waiting(self) -> list[Path]:
        try:
            found = [path for path in self._folder.iterdir() if path.suffix == SUFFIX]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))

    async def _take(self, path: Path, write: Write) -> None:
        try:
            with path.open("rb") as file:
                made = parse_labels(file.read(MAX_BYTES + 1))
        except FileNotFoundError:
            return  # another server has taken it in
        except LabelsError as error:
            log.warning("%s cannot be taken in and is put aside: %s", path, error)
            path.replace(path.with_name(path.name + REFUSED))
            return
        about = Dictionary(made.weights, made.crosscoder, made.num_latents)
        await write(about, _rows(made), Options(made.author, made.made_at, replace=True))
        path.unlink(missing_ok=True)
        log.info("%d labels of job %s were taken in", len(made.labels), made.job)


def _rows(made: MadeLabels) -> list[Row]:
    said = ((each.latent, Said(each.text, made.author, made.made_at, 0, each.scores)) for each in made.labels)
    return [Row(made.weights, LatentWords(latent, {What.AUTOMATIC_LABEL: label}, {})) for latent, label in said]
