"""What an installation can do and how its parts are, as the server said. Knows no messages and asks nobody."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from crosscope._public import public


@public
class PartState(Enum):
    """How a part of an installation stands."""

    ABSENT = "absent"
    """The server was started without it."""
    AWAY = "away"
    """It does not answer."""
    UP = "up"


@public
@dataclass(frozen=True)
class DeviceMemory:
    """How much of a device is in use."""

    name: str
    used_bytes: int
    """Memory: of an inference worker's device what it uses itself, of a job worker's what all processes use; 0 if
    unknown."""
    limit_bytes: int
    """0 if unknown."""
    busy: float | None = None
    """Share of the last second in which it worked, by all processes, 0 to 1; None if unknown."""


@public
@dataclass(frozen=True)
class InferenceWorker:
    """An inference worker."""

    index: int
    """Its place in the server's list, from 0."""
    state: PartState
    says_serving: bool
    """Whether its health says that it serves; one that is AWAY all the same hangs."""
    version: str
    """Empty if it did not say."""
    device: str
    """Of several: the base model's, a comma, and the chat model's; + between those that share a model's layers."""
    memory_bytes: int
    """Memory of its devices that it uses."""
    memory_limit_bytes: int
    max_prompt_tokens: int
    queued_tokens: int
    device_busy_s: float
    """For how long the work of now has kept the device; 0: it rests."""
    devices: tuple[DeviceMemory, ...] = ()
    """Each device by itself; empty of an older version."""


@public
@dataclass(frozen=True)
class JobWorker:
    """A job worker that listens."""

    device: str
    name: str
    memory_bytes: int | None
    silent_s: float
    """Seconds since it last said that it lives."""
    devices: tuple[DeviceMemory, ...] = ()
    """Each device by itself; empty of an older version."""


@public
@dataclass(frozen=True)
class RunningJob:
    """A job that runs now."""

    id: str
    kind: str
    name: str
    stage: str
    message: str
    done: float
    """Share of the whole job, 0 to 1."""
    tokens_per_s: float | None


@public
@dataclass(frozen=True)
class QueueStatus:
    """The job queue."""

    state: PartState
    jobs: Mapping[str, int]
    """Jobs by state: "queued", "running", "succeeded", "failed", "cancelled"; empty unless UP."""
    oldest_queued_s: float
    running: tuple[RunningJob, ...]
    workers: tuple[JobWorker, ...]


@public
@dataclass(frozen=True)
class Traffic:
    """What went through the server in the last ten seconds."""

    calls_per_s: float
    errors_per_s: float
    p50_ms: float
    """Of calls with one reply."""
    p99_ms: float
    in_flight: int
    memory_bytes: int
    """Memory of the server."""
    prompts_under_way: int = 0
    """Prompt calls that have not ended, those that wait among them."""
    max_prompts_under_way: int = 0
    """Prompt calls that may be under way; 0 where the server does not say."""
    prompts_waiting: int = 0
    """Prompts that wait for an inference worker."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Calls that were refused, by reason: "door_full", "behind", "concurrent_calls", "prompt_tokens", "queue_full",
    "deadline", "late", "no_worker" and "unread"."""


@public
@dataclass(frozen=True)
class StoreStatus:
    """The store that several machines share."""

    state: PartState
    """Whether it answered when the server last looked."""
    url: str
    sentence: str
    """What is wrong with it, or with something in it; empty if nothing is."""
    published: int
    """Versions, looks and pairs that it held when it last answered."""
    copies_bytes: int
    """Of copies of its files in the server's home."""
    limit_bytes: int


@public
@dataclass(frozen=True)
class RequestLimits:
    """What a request may hold at most."""

    request_bytes: int
    conversation_bytes: int
    prompt_tokens: int | None
    """What every worker takes; None while none answers."""
    recipe_bytes: int
    stream_in_flight: int


@public
@dataclass(frozen=True)
class CallerStatus:
    """Who asks, and what this caller may do."""

    name: str
    """Of the token; empty without tokens."""
    roles: tuple[str, ...]
    limits: Mapping[str, int]


@public
@dataclass(frozen=True)
class Problem:
    """Something that is wrong: what, and what to do."""

    sentence: str
    action: str

    def __str__(self) -> str:
        return f"{self.sentence} {self.action}"


@public
@dataclass(frozen=True)
class Capabilities:
    """What can be asked of an installation now, and how its parts are."""

    version: str
    """The server's."""
    client_version: str
    schema_version: int
    features: tuple[str, ...]
    """Of "latents", "prompts", "jobs", "cache" and "reflection", those that can be asked now."""
    pairs: tuple[str, ...]
    crosscoders: tuple[str, ...]
    broken: tuple[str, ...]
    """Crosscoders that the server cannot read."""
    inference_workers: tuple[InferenceWorker, ...]
    queue: QueueStatus
    cache: PartState
    disk_free_bytes: int
    traffic: Traffic
    limits: RequestLimits
    caller: CallerStatus
    store: StoreStatus
    home_bytes: int | None = None
    """What the home holds, as of a minute ago at most; None without a limit."""
    home_max_bytes: int | None = None
    """What the home may hold; no job is accepted beyond it. None without a limit."""
    problems: tuple[Problem, ...] = ()
    """What is wrong, the worst first; empty if all is well."""
