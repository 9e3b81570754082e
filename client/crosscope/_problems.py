"""What is wrong with an installation, in sentences: each says what, and what to do. Asks nobody."""

from collections.abc import Iterator

from crosscope._capabilities import Capabilities, InferenceWorker, PartState, Problem, QueueStatus, Traffic

LOW_DISK_BYTES = 2_000_000_000
"""Less free room than this is said."""
STUCK_S = 300.0
"""A device that one piece of work has kept for longer is said to be stuck."""
SILENT_S = 20.0
"""A job worker that has said nothing for longer may be dead."""
_MORE = "Start another inference worker, or ask for less at once: `encode_many` waits by itself."
_SLOWER = "Ask for less at once, `encode_many` waits by itself; or give the server a core of its own."
_HIGHER = "Ask whoever runs the server for a higher limit."
_LESS = "Allow them more time, or ask for less."
_REFUSED = {
    "door_full": ("{traffic.max_prompts_under_way} prompt calls may be under way, of one caller fewer", _MORE),
    "behind": ("the server had too much to do, so that it let in fewer than it otherwise would", _SLOWER),
    "queue_full": ("they would have waited for too long", _MORE),
    "deadline": ("they would not have been answered before their deadline", _LESS),
    "late": ("their deadline passed while they waited", _LESS),
    "concurrent_calls": ("their token may have no more calls at a time", _HIGHER),
    "prompt_tokens": ("their token has had its tokens of this minute", _HIGHER),
    "unread": ("their caller left too many results unread", "Read faster, or ask for less with top_k."),
}
"""Reasons of refusals: why, and what to do. That no worker serves is said on its own."""


def problems_of(found: Capabilities) -> tuple[Problem, ...]:
    """What is wrong, the worst first."""
    return (
        *_versions(found),
        *_disk(found),
        *_inference(found),
        *_refused(found.traffic),
        *_queue(found.queue),
        *_rest(found),
    )


def skew(one: str, other: str) -> bool:
    """Whether two versions differ in a way that matters: before 1.0 in the second number, from then on in the first."""
    first, second = ([*version.split("."), "", ""][:2] for version in (one, other))
    return first != second if "0" in (first[0], second[0]) else first[0] != second[0]


def _versions(found: Capabilities) -> Iterator[Problem]:
    if skew(found.client_version, found.version):
        yield Problem(
            f"This client is of version {found.client_version}, and the server of {found.version}: calls may fail or "
            "mean something else.",
            f"Install crosscope {found.version} here, or update the server.",
        )
    for worker in found.inference_workers:
        if worker.state is PartState.UP and worker.version != found.version:
            yield Problem(
                f"Inference worker {worker.index} is of version {worker.version or 'older than 0.1'}, and the server "
                f"of {found.version}.",
                "Install the same version for both, and start them again.",
            )


def _disk(found: Capabilities) -> Iterator[Problem]:
    if found.disk_free_bytes < LOW_DISK_BYTES:
        yield Problem(
            f"Only {found.disk_free_bytes / 1e9:.1f} GB are free on the server's disk: jobs and the queue fail when it "
            "is full.",
            "Remove what can be made again: activations/ and search/ of the home.",
        )
    held, most = found.home_bytes, found.home_max_bytes
    if held is not None and most is not None and held >= most:
        yield Problem(
            f"The home holds {held / 1e9:.4g} GB of the {most / 1e9:.4g} GB that it may: no job is accepted.",
            "See what is of no use any more with `crosscope gc --dry-run`, or raise CROSSCOPE_SERVER_HOME_GB.",
        )


def _inference(found: Capabilities) -> Iterator[Problem]:
    if not found.inference_workers:
        yield Problem(
            "The server has no inference worker: crosscoders can be browsed, and prompts are refused.",
            "Start one with `python -m crosscope_worker serve`, and name it in CROSSCOPE_SERVER_WORKERS.",
        )
    for worker in found.inference_workers:
        yield from _worker(worker)


def _worker(worker: InferenceWorker) -> Iterator[Problem]:
    name = f"Inference worker {worker.index}"
    if worker.state is not PartState.UP and worker.says_serving:
        yield Problem(
            f"{name} hangs: its health says that it serves, but it does not answer within a second.",
            "End its process with kill -9; `crosscope up` or your service manager starts it again.",
        )
    elif worker.state is not PartState.UP:
        yield Problem(f"{name} is away: it does not answer.", "Read its log, logs/worker.log, or start it.")
    elif worker.device_busy_s > STUCK_S:
        yield Problem(
            f"{name} has been at one piece of work on {worker.device} for {worker.device_busy_s:.0f} s.",
            "If it does not load a large model, its driver hangs: end its process with kill -9.",
        )


def _refused(traffic: Traffic) -> Iterator[Problem]:
    for reason, number in sorted(traffic.refused.items(), key=lambda each: -each[1]):
        if reason in _REFUSED:
            why, action = _REFUSED[reason]
            calls, verb = ("call", "was") if number == 1 else ("calls", "were")
            said = f"{number} {calls} of the last ten seconds {verb} refused"
            yield Problem(f"{said}, because {why.format(traffic=traffic)}.", action)


def _queue(queue: QueueStatus) -> Iterator[Problem]:
    if queue.state is PartState.AWAY:
        yield Problem(
            "The job queue does not answer: no jobs can be submitted or followed; running jobs go on.",
            "Read logs/queue.log; a full disk stops it.",
        )
    if queue.state is not PartState.UP:
        return
    if not queue.workers:
        waiting = queue.jobs.get("queued", 0)
        yield Problem(
            f"No job worker listens{f', and {waiting} jobs wait' if waiting else ''}.",
            "Start one with `python -m crosscope_worker jobs`, or read logs/jobs.log.",
        )
    for worker in queue.workers:
        if worker.silent_s > SILENT_S:
            yield Problem(
                f"The job worker on {worker.name} has said nothing for {worker.silent_s:.0f} s.",
                "If it does not come back within a minute, read logs/jobs.log and start it again.",
            )


def _rest(found: Capabilities) -> Iterator[Problem]:
    if found.cache is PartState.AWAY:
        yield Problem(
            "The result cache does not answer: every prompt is computed anew.", "Read logs/cache.log; nothing is lost."
        )
    if found.store.state is PartState.AWAY:
        yield Problem(
            f"What is published cannot be looked up: {found.store.sentence.rstrip('.')}.",
            "What is here already is served meanwhile, and jobs that have ended wait to publish.",
        )
    elif found.store.sentence:
        yield Problem(
            f"Something in the store is not shown: {found.store.sentence.rstrip('.')}.", "Mend what it names."
        )
    if found.broken:
        yield Problem(
            f"The server cannot read {', '.join(found.broken)}.",
            "`crosscope crosscoders` says why; publish them again.",
        )
