"""Every Redis key and time to live. The server and the job worker meet only here.

Pure strings: knows nothing about Redis clients. RQ's own keys start with "rq:", ours with "crosscope:".
"""

import hashlib

JOB_QUEUE = "crosscope"
"""Name of the one job queue, which every job worker listens to."""
JOB_ENTRY = "crosscope_worker.jobs.entry.run"
"""The function that RQ's note of every job names. Workers do not look it up: what a job does is in its record."""

JOB_INDEX = "crosscope:jobs"
"""Sorted set of job ids by the time they were queued, seconds since 1970."""
OPEN_JOBS = "crosscope:jobs:open"
"""Set of the ids of jobs that the janitor still looks after."""
MAX_JOBS = 10_000
"""Jobs that the index keeps; the oldest ended ones go first."""

SPENT = "crosscope:spent:"
"""Beginning of the keys of spent_key."""
SPENT_TTL_S = 3 * 24 * 3600

EVENTS_MAXLEN = 20_000
"""About how many events of one job are kept; the oldest go first."""

JOB_WORKERS = "crosscope:workers"
"""Hash of what each job worker says of itself, by its name: JSON of a WorkerNote (job_record.py)."""
WORKER_NOTE_S = 60
"""A job worker that has not said anything of itself for this long is gone."""
LEASE_S = 20
"""A running job whose worker has not renewed its lease for this long has died."""
IDEMPOTENCY_TTL_S = 7 * 24 * 3600
"""How long a second submission with the same key is answered with the first one's job."""
ENCODE_TTL_S = 7 * 24 * 3600
"""Longest life of a cached reply; the cache drops replies that are seldom used earlier."""


def job_key(job_id: str) -> str:
    """Hash of a job: what was submitted, and what its attempts report."""
    return f"crosscope:job:{job_id}"


def events_key(job_id: str) -> str:
    """Stream of a job's events."""
    return f"crosscope:job:{job_id}:events"


def metrics_key(job_id: str) -> str:
    """Hash of the latest value of each of a job's figures."""
    return f"crosscope:job:{job_id}:metrics"


def stages_key(job_id: str) -> str:
    """Hash of the seconds that each finished stage of a job took."""
    return f"crosscope:job:{job_id}:stages"


def idempotency_key(caller_key: str) -> str:
    """Id of the job that the first submission with this key made."""
    return f"crosscope:submission:{_digest(caller_key)}"


def spent_key(owner: str, at: float) -> str:
    """Seconds of devices that the jobs of one submitter took on the day of `at` (UTC). An attempt counts at its end."""
    return f"{SPENT}{int(at // 86400)}:{owner}"


def encode_key(crosscoder: str, version_id: str, method: str, request: bytes) -> str:
    """A cached reply to a prompt. `request` is the request in a canonical form, `method` the name of the call.

    The version is part of the key, so a new version never answers with an old version's codes. Prompts are hashed and
    never stored in a key.
    """
    return f"crosscope:reply:{method}:{crosscoder}:{version_id}:{_digest(request)}"


def per_caller_key(key: str, caller: str) -> str:
    """The key of a reply that answers one caller alone."""
    return f"{key}:{_digest(caller)}"


def _digest(value: str | bytes) -> str:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return hashlib.blake2b(data, digest_size=20).hexdigest()
