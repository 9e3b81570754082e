"""The process of one attempt of one job: `python -m crosscope_worker.jobs.entry`, started by the job worker.

Reads the task from the job's record, carries it out, and writes the outcome; knows nothing about RQ. The job worker
reads the outcome from the record, so nothing depends on how this process exits.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from crosscope_proto import job_record, request_ids
from crosscope_proto.artefacts import JOB_LOG, CrosscoderManifest, job_folder
from crosscope_proto.beats import Beats
from crosscope_proto.labels import MadeLabels
from crosscope_proto.left_out import left_out
from crosscope_proto.logs import configure_logging
from crosscope_proto.looks import LookManifest
from crosscope_proto.recipe import LabelRecipe, RecipeError, parse_recipe
from crosscope_proto.stages import STAGES
from crosscope_store.files import Tick
from crosscope_store.shelf import open_shelf
from crosscope_worker.disk import is_no_room, write_whole
from crosscope_worker.jobs.claim import MAX_MESSAGE, Claim, QueueAway
from crosscope_worker.jobs.journal import Journal
from crosscope_worker.jobs.kinds import load_kind
from crosscope_worker.jobs.reporter import JobPulse, Reporter
from crosscope_worker.jobs.retention import retry_hint
from crosscope_worker.jobs.stages import Shares, weights
from crosscope_worker.lifeline import die_with_parent
from crosscope_worker.priority import give_way
from crosscope_worker.sharing import READING, Sharing
from crosscope_worker.work import Cancelled, LostClaim, Manifest, Progress, RankError, Workspace, is_out_of_memory

RESULT = "result.json"
"""Name of the file that a published job leaves in its folder. If the attempt dies before it reports, the next attempt
reads it and does not repeat the work."""
DONE = "Done."
"""The message of a job that left out none of its data."""
_GIVE_UP_S = 1.0
"""How long a cancelled job in the middle of a step waits for Redis if it is away."""
_HINT = 150
"""Characters of a message that are reserved for the hint how to continue."""
QUEUE_WAIT_S = 600.0
"""How long a finished job waits for Redis, if it is away, before it may publish or end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """The description of an attempt, from the job worker to the job's process."""

    job_id: str
    claim: str
    queue_url: str
    home: str
    device: str
    parent_pid: int
    kinds: Mapping[str, str]
    data_roots: Sequence[str] = ()
    """Folders besides the home from which recipes may read files."""
    label_addresses: Sequence[str] = ()
    """Addresses besides those of this machine that recipes may have called."""
    keeps_checkpoints: bool = True
    """Whether a failed job can be retried."""
    beat_s: float = 60
    """How long the reporting thread may stand still."""
    silent_s: float = 1800
    """How long the job may go without a report of progress."""
    nice: int = 0
    """How far it gives way to other processes."""
    ray_address: str | None = None
    """The Ray cluster on which trainings on several devices run."""
    store: str | None = None
    """URL of the store that the home shares with others."""
    store_cache_bytes: int | None = None
    """What copies of the store's files may take."""

    def to_json(self) -> str:
        """JSON for a pipe: a command line or an environment would show the queue's password to others."""
        return json.dumps(asdict(self))


def run(attempt: Attempt, stopping: threading.Event | None = None, beats: Beats | None = None) -> None:
    """Runs one attempt of a job to its end and records the outcome.

    After `stopping` is set the job stops at its next step, and its record stays open for a later attempt. `beats` are
    for the job worker, which kills what hangs.
    """
    stopping, pulse = stopping or threading.Event(), JobPulse(beats or Beats(None), attempt.beat_s, attempt.silent_s)
    is_stopping = _waiting(stopping, pulse)

    redis = Redis.from_url(
        attempt.queue_url,
        decode_responses=True,
        socket_timeout=10,
        socket_connect_timeout=5,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
    )
    with redis:
        claim = Claim(redis, attempt.job_id, attempt.claim)
        folder = Path(job_folder(Path(attempt.home), attempt.job_id))
        try:
            end, message, version_id = _work(attempt, claim, folder, stopping, pulse)
            claim.finish(end, message, version_id, QUEUE_WAIT_S, is_stopping)
        except (LostClaim, QueueAway) as error:
            log.warning("job %s: attempt stopped: %s", attempt.job_id, error)


def _waiting(stopping: threading.Event, pulse: JobPulse) -> Callable[[], bool]:
    """What says whether to stop at each try while the queue is away; to wait for it is no hang."""

    def is_stopping() -> bool:
        pulse.reports()
        pulse.work()
        return stopping.is_set()

    return is_stopping


def _work(
    attempt: Attempt, claim: Claim, folder: Path, stopping: threading.Event, pulse: JobPulse
) -> tuple[str, str, str]:
    """The outcome of the job: state, message, version id. Raises LostClaim and QueueAway."""
    is_stopping = _waiting(stopping, pulse)
    task = claim.task(QUEUE_WAIT_S, is_stopping)
    request_ids.set_current(task.request_id)
    try:
        journal = Journal(folder, task.attempt)
    except OSError as error:
        return job_record.FAILED, sentence(error, folder), ""

    def give_up() -> None:
        """Ends this process at once, and the job if it was cancelled; every file that it writes is whole or absent."""
        message = with_hint("Cancelled.", attempt, folder)
        end = job_record.CANCELLED, f"{message} It was in the middle of a step."
        try:
            claim.finish(job_record.CANCELLED, message, "", _GIVE_UP_S, lambda: False)
        except QueueAway:
            return  # The job worker ends the job.
        except LostClaim:
            end = "lost", "Another attempt has taken over; this one was in the middle of a step."
        journal.write("end", state=end[0], message=end[1])
        os._exit(0)

    shares = Shares(weights(STAGES.get(_kind(task.recipe), ()), task.seconds), task.done)
    reporter = Reporter(claim, journal, pulse, stopping.is_set, shares, give_up)

    def fence() -> None:
        standing = claim.standing(QUEUE_WAIT_S, is_stopping)
        if not standing.holds:
            raise LostClaim("another attempt has taken over this job")
        if standing.cancelled:
            raise Cancelled("someone asked the job to stop")
        reporter.is_publishing = True

    try:
        _keep_recipe(folder, task.recipe)
        journal.write(
            "start", device=attempt.device, **({request_ids.FACT: asked} if (asked := task.request_id) else {})
        )
        result = _published(folder)
        if result is None:
            recipe = parse_recipe(task.recipe)
            roots = tuple(map(Path, attempt.data_roots))
            submitted_from = Path(task.folder) if task.folder else None
            addresses, home = tuple(attempt.label_addresses), Path(attempt.home)
            shelf = open_shelf(home, attempt.store, attempt.store_cache_bytes, _ticking(reporter))
            workspace = Workspace(
                home,
                folder,
                fence,
                device=attempt.device,
                data_roots=roots,
                label_addresses=addresses,
                submitted_from=submitted_from,
                beat_s=attempt.beat_s,
                silent_s=attempt.silent_s,
                ray_address=attempt.ray_address,
                shelf=shelf,
            )
            Sharing.of(workspace, reporter).prepare(publishes=not isinstance(recipe, LabelRecipe))
            job = load_kind(attempt.kinds, recipe.kind)  # only now, since torch takes its time
            result = _keep_result(folder, job(recipe, workspace, reporter))
        ending = job_record.SUCCEEDED, result["message"], result["version_id"]
    except Cancelled:
        ending = job_record.CANCELLED, with_hint("Cancelled.", attempt, folder), ""
    except (LostClaim, QueueAway):
        raise
    except Exception as error:  # every failure goes into the job's record, and its traceback into the log
        journal.failure(error)
        ending = job_record.FAILED, with_hint(sentence(error, folder), attempt, folder), ""
    finally:
        reporter.close(QUEUE_WAIT_S)
    journal.write("end", state=ending[0], message=ending[1])
    return ending


def _ticking(progress: Progress) -> Tick:
    """A Tick that tells how much of the store's files has come."""
    done = 0

    def tick(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(READING, 0.0, f"reading from the store: {done / 1e6:.0f} MB so far")

    return tick


def sentence(error: Exception, folder: Path) -> str:
    """The message of a failed job: the error, cut to leave room for its notes, and the notes."""
    notes = " ".join(getattr(error, "__notes__", ()))[: MAX_MESSAGE // 2]
    return f"{_cut(_cause(error, folder), MAX_MESSAGE - _HINT - len(notes) - 1)} {notes}".strip()


def with_hint(message: str, attempt: Attempt, folder: Path) -> str:
    """A job's last message, with a hint how to continue from its checkpoints if that is possible."""
    hint = retry_hint(folder) if attempt.keeps_checkpoints else ""
    return f"{message} {hint}" if hint else message


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _cause(error: Exception, folder: Path) -> str:
    """The cause of a failure in a sentence; for an unexpected error it points to the log."""
    if isinstance(error, RankError):
        cause = error.__cause__
        assert isinstance(cause, Exception)
        return f"{error.where}: {_cause(cause, folder)}"
    if isinstance(error, OSError):
        if is_no_room(error):
            return f"The disk is full ({error.filename or folder}): free some space and retry the job."
        return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    if is_out_of_memory(error):
        return "Out of memory: a smaller batch_size, buffer_tokens or num_latents needs less."
    if isinstance(error, ValueError) and str(error):
        return str(error)
    return f"Unexpected {type(error).__name__}: {error}. The traceback is in {folder / JOB_LOG}."


def _kind(text: str) -> str:
    try:
        return parse_recipe(text).kind
    except RecipeError:
        return ""


def _published(folder: Path) -> dict[str, str] | None:
    path = folder / RESULT
    return {"message": DONE, **json.loads(path.read_text("utf-8"))} if path.exists() else None


def _keep_result(folder: Path, manifest: Manifest) -> dict[str, str]:
    result = {"name": manifest.name, "version_id": "", "message": DONE}
    if isinstance(manifest, CrosscoderManifest | LookManifest):
        lost = left_out(manifest.skipped, manifest.texts)
        done = f"Done; {'; '.join(lost)}." if lost else DONE
        result["message"] = " ".join([done, *manifest.warnings])
    if isinstance(manifest, CrosscoderManifest):
        result["version_id"] = manifest.version_id
    if isinstance(manifest, MadeLabels):
        result["message"] = " ".join([DONE, manifest.summary, *manifest.notes])
    if isinstance(manifest, LookManifest):
        result["message"] += f" {manifest.reason}"
    try:
        write_whole(folder / RESULT, json.dumps(result))
    except OSError as error:  # the version is published nevertheless
        log.warning("cannot write %s: %s", folder / RESULT, error.strerror)
    return result


def _keep_recipe(folder: Path, text: str) -> None:
    if not (folder / "recipe.yaml").exists():
        write_whole(folder / "recipe.yaml", text)


def main() -> int:
    """Runs the attempt that standard input describes."""
    configure_logging("job")
    beats = Beats.from_environment()
    attempt = Attempt(**json.load(sys.stdin))
    die_with_parent(attempt.parent_pid)
    give_way(attempt.nice, leader=attempt.parent_pid)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(attempt, stopping, beats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
