"""The record of a job in Redis: its fields, and the scripts through which it changes.

Each change of state is one Lua script. So it happens whole or not at all, whichever process dies, and server and
workers agree on which state may follow which. A script that changes a state takes the keys [job_key, events_key, …] of
`keys.py`. It ends with an event, which wakes those who watch. Pure strings: knows nothing about Redis clients.

A job waits if its record has neither `claim` nor `end`. An attempt runs it if the record has `claim`. It is over, until
somebody retries it, if the record has `end`.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from crosscope_proto import keys

MAX_CRASHES: Final = 3
"""A job whose process has died this often is not started again."""
STOP_WITHIN_S: Final = 1.2
"""A running job that was asked to stop ends at its next step, or after this time wherever it is."""
CANCEL_GRACE_S: Final = 10
"""After this time the worker kills a running job that was asked to stop and has not ended by itself."""

SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"


@dataclass(frozen=True)
class DeviceNote:
    """How much of a device is in use, by all processes; None where that is not known."""

    device: str
    """In torch's words."""
    used_bytes: int | None
    limit_bytes: int | None
    busy: float | None
    """Share of the last second in which it worked, 0 to 1."""


@dataclass(frozen=True)
class WorkerNote:
    """What a job worker says of itself, with every beat (keys.JOB_WORKERS)."""

    at: float
    """When, seconds since 1970."""
    device: str
    """Its device in torch's words."""
    name: str
    """Its device for people."""
    memory_bytes: int | None
    """All memory of the device; None if unknown."""
    free_bytes: int | None
    """What of it is free; None if unknown."""
    num_devices: int = 1
    """Number of such devices that it has for a training."""
    devices: tuple[DeviceNote, ...] = ()
    """Each of them by itself; empty of an older version."""

    def text(self) -> str:
        """The note as it lies in Redis."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        """The note of a job worker of any version: fields that are not known here are left out."""
        found = json.loads(text)
        devices = tuple(DeviceNote(**_known(DeviceNote, each)) for each in found.pop("devices", ()))
        return cls(**_known(cls, found), devices=devices)


def _known(kind: type[DeviceNote | WorkerNote], found: dict[str, Any]) -> dict[str, Any]:
    return {each.name: found[each.name] for each in fields(kind) if each.name in found}


TEXT_FIELDS = (
    "kind",
    "name",
    "recipe",
    "claim",
    "stage",
    "message",
    "end",
    "version_id",
    "folder",
    "seconds",
    "request_id",
    "traceparent",
    "owner",
)
"""Fields that are texts. `claim` is the id of the attempt that runs the job. `end` is one of SUCCEEDED, FAILED and
CANCELLED. `folder` is the folder from which the job was submitted. `seconds` is a JSON object: how long each
stage is expected to take; empty where that is not known. `request_id` is the id of the call that submitted the job,
and `traceparent` the span of that call; empty if unknown. `owner` is the name of the token that submitted the job;
empty where callers have no names."""
NUMBER_FIELDS = (
    "created_at",
    "started_at",
    "ended_at",
    "cancel_at",
    "attempt",
    "crashes",
    "fraction",
    "total_fraction",
    "eta_s",
    "num_devices",
)
"""Fields that are decimal numbers. Times are in seconds since 1970. `num_devices` is how many devices the job holds at
once; 0 where nobody has said, which counts as one."""
GONE = "gone"
"""Field that is set before the checkpoints of a failed or cancelled job are removed. From then on nobody can retry
it."""
AFTER = "after"
"""Field with a JSON list: the ids of jobs that must succeed first."""

_FUNCTIONS = """
local job, events = KEYS[1], KEYS[2]
local function get(name) return redis.call('HGET', job, name) or '' end
local function say(at, message)
  redis.call('HSET', job, 'message', message)
  redis.call('XADD', events, '*', 'at', at, 'stage', get('stage'), 'fraction', get('fraction'), 'message', message,
    'step', '0', 'metrics', '{}')
end
local function spend(at)
  if get('claim') == '' or get('owner') == '' then return end
  local key = 'SPENT' .. math.floor(tonumber(at) / 86400) .. ':' .. get('owner')
  local devices = math.max(tonumber(get('num_devices')) or 1, 1)
  redis.call('INCRBYFLOAT', key, math.max(tonumber(at) - tonumber(get('started_at')), 0) * devices)
  redis.call('EXPIRE', key, SPENT_TTL_S)
end
local function finish(state, at, message)
  spend(at)
  redis.call('HDEL', job, 'claim')
  redis.call('HSET', job, 'end', state, 'ended_at', at)
  say(at, message)
end
""".replace("SPENT_TTL_S", str(keys.SPENT_TTL_S)).replace("SPENT", keys.SPENT)

SUBMIT = (
    _FUNCTIONS
    + """
local known = redis.call('GET', KEYS[3])
if known then return known end
if redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[5]) then return '' end
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[2])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1])
redis.call('SADD', KEYS[5], ARGV[1])
redis.call('HSET', job, unpack(ARGV, 6))
say(ARGV[3], ARGV[4])
return ARGV[1]
"""
)
"""Records a new job. Keys: …, idempotency_key, JOB_INDEX, OPEN_JOBS. Arguments: id, seconds that the idempotency key
lives, now, message, most open jobs, then field, value, … Returns the job's id; if the idempotency key is known, the id
of its job; nothing if there are as many open jobs as there may be."""

CLAIM = (
    _FUNCTIONS
    + """
if redis.call('EXISTS', job) == 0 or get('end') ~= '' then return 'ended' end
if get('claim') == ARGV[1] then return 'ok' end
if get('claim') ~= '' then return 'taken' end
redis.call('HINCRBY', job, 'attempt', 1)
redis.call('HSET', job, 'claim', ARGV[1], 'started_at', ARGV[2], 'stage', '', 'fraction', '0', 'eta_s', '0')
say(ARGV[2], 'Started.')
return 'ok'
"""
)
"""Gives a waiting job to an attempt. Arguments: claim, now. Returns "ok", "ended" or "taken". The same claim may ask
again and gets "ok" again."""

RELEASE = (
    _FUNCTIONS
    + """
if get('claim') ~= ARGV[1] then return 'lost' end
if get('cancel_at') ~= '' then finish('cancelled', ARGV[2], 'Cancelled.') return 'ended' end
if ARGV[4] ~= '' and redis.call('HINCRBY', job, 'crashes', 1) >= tonumber(ARGV[5]) then
  finish('failed', ARGV[2], ARGV[4])
  return 'ended'
end
spend(ARGV[2])
redis.call('HDEL', job, 'claim')
say(ARGV[2], ARGV[3])
return 'ok'
"""
)
"""Takes a job back from an attempt that has gone. Arguments: claim, now, message, last message, MAX_CRASHES. The last
message is empty if the attempt did not crash; after MAX_CRASHES crashes the job fails with it. Returns "ok" (queue the
job again), "ended" or "lost"."""

FINISH = (
    _FUNCTIONS
    + """
if get('claim') ~= ARGV[1] then return 'lost' end
redis.call('HSET', job, 'version_id', ARGV[5])
if ARGV[3] == 'succeeded' then redis.call('HSET', job, 'fraction', '1', 'total_fraction', '1') end
finish(ARGV[3], ARGV[2], ARGV[4])
return 'ok'
"""
)
"""Ends a running job. Arguments: claim, now, end, message, version id. Returns "ok" or "lost"."""

END_QUEUED = (
    _FUNCTIONS
    + """
if redis.call('EXISTS', job) == 0 or get('end') ~= '' then return 'ended' end
if get('claim') ~= '' then return 'running' end
finish(ARGV[2], ARGV[1], ARGV[3])
return 'ok'
"""
)
"""Ends a job that no attempt runs. Arguments: now, end, message. Returns "ok", "ended" or "running"."""

RETRY = (
    _FUNCTIONS
    + """
if redis.call('EXISTS', job) == 0 then return 'unknown' end
if get('end') == '' then return get('claim') == '' and 'queued' or 'running' end
if get('end') == 'succeeded' then return 'succeeded' end
if get('gone') ~= '' then return 'gone' end
redis.call('HDEL', job, 'end', 'ended_at', 'cancel_at', 'crashes')
redis.call('HSET', job, 'stage', '', 'fraction', '0')
redis.call('SADD', KEYS[3], ARGV[2])
say(ARGV[1], ARGV[3])
return 'ok'
"""
)
"""Lets a job that failed or was cancelled wait again. Keys: …, OPEN_JOBS. Arguments: now, id, message. Returns
"unknown", "queued" (it waits already), "running", "succeeded", "gone" (its checkpoints are removed) or "ok"."""

EXPIRE = """
local ended = redis.call('HGET', KEYS[1], 'end')
if not ended then return redis.call('EXISTS', KEYS[1]) == 1 and 'open' or 'unknown' end
if ended == 'succeeded' then return 'gone' end
if tonumber(redis.call('HGET', KEYS[1], 'ended_at')) > tonumber(ARGV[1]) then return 'kept' end
redis.call('HSET', KEYS[1], 'gone', '1')
return 'gone'
"""
"""Says whether the checkpoints of a job may be removed, and if so forbids a retry. Keys: job_key. Arguments: the time
before which the job must have ended. Returns "unknown", "open" (it has not ended), "kept" (it ended later) or "gone"
(remove them)."""

CLOSE = """
if redis.call('EXISTS', KEYS[1]) == 1 and (redis.call('HGET', KEYS[1], 'end') or '') == '' then return 'open' end
redis.call('SREM', KEYS[2], ARGV[1])
return 'ok'
"""
"""Takes an ended or unknown job off the janitor's list. Keys: job_key, OPEN_JOBS. Arguments: id. Returns "ok", or
"open" if somebody has just retried it."""

CANCEL = (
    _FUNCTIONS
    + """
if redis.call('EXISTS', job) == 0 then return 'unknown' end
if get('end') ~= '' then return 'ended' end
if get('claim') == '' then finish('cancelled', ARGV[1], 'Cancelled before it started.') return 'ok' end
if redis.call('HSETNX', job, 'cancel_at', ARGV[1]) == 1 then say(ARGV[1], 'Stopping.') end
return 'running'
"""
)
"""Asks a job to stop. Arguments: now. Returns "unknown", "ended", "ok" (it was queued and has ended) or "running" (it
will stop)."""

REPORT = """
local job, events = KEYS[1], KEYS[2]
if redis.call('HGET', job, 'claim') ~= ARGV[1] then return {'lost', ''} end
local news = cjson.decode(ARGV[3])
for _, event in ipairs(news.events) do
  redis.call('XADD', events, 'MAXLEN', '~', ARGV[2], '*', unpack(event))
end
if #news.latest > 0 then redis.call('HSET', job, unpack(news.latest)) end
if #news.metrics > 0 then redis.call('HSET', KEYS[3], unpack(news.metrics)) end
if #news.stages > 0 then redis.call('HSET', KEYS[4], unpack(news.stages)) end
return {'ok', redis.call('HGET', job, 'cancel_at') or ''}
"""
"""Writes what an attempt reports. Keys: …, metrics_key, stages_key. Arguments: claim, EVENTS_MAXLEN, and a JSON object
with `events` (lists of field, value, …), `latest`, `metrics` and `stages` (each field, value, …), all of texts.
Returns "ok" or "lost", and `cancel_at`."""
