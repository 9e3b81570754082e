"""Figures for Prometheus, in a registry of their own, and the last seconds' traffic. Knows not what is counted.

docs/operations.md lists every metric; a test compares it with what is exposed.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from crosscope_proto.ages import Ages
from crosscope_proto.exposition import new_registry, show_ages

NO_NAME = "-"
"""The caller of calls without a token: a connection is no name."""
OTHERS = "others"
MAX_CALLERS = 100
"""Callers that have series of their own; calls of all further ones count as OTHERS."""
WINDOW_S = 10.0
"""How far back the traffic looks."""
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_MAX_REMEMBERED = 20_000


@dataclass(frozen=True)
class Traffic:
    """What went through the server in the last WINDOW_S."""

    calls_per_s: float
    errors_per_s: float
    """Calls that ended otherwise than with OK."""
    p50_ms: float
    """Of calls with one reply; 0 if there were none."""
    p99_ms: float
    in_flight: int


class Metrics:
    """Counters, gauges and histograms of one server. Counts on the event loop; Prometheus reads from its own thread."""

    def __init__(
        self,
        home: Path | None = None,
        ages: Ages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`home` is the folder whose disk is shown; `ages` are those of the process's parts."""
        self.registry = registry = new_registry()
        self._clock = clock
        show_ages(registry, ages or Ages(), "server", "event loop")
        self._calls = Counter("crosscope_calls", "Ended calls", ["method", "status", "caller"], registry=registry)
        self._seconds = _histogram("crosscope_call_seconds", "Time that calls took", registry)
        self._worker_seconds = _histogram("crosscope_worker_call_seconds", "Time until a worker had answered", registry)
        self._in_flight = Gauge("crosscope_calls_in_flight", "Calls that have not ended", registry=registry)
        self._errors = Counter("crosscope_errors", "Calls that ended with an error", ["reason"], registry=registry)
        self._cache = Counter("crosscope_cache", "Look-ups in the result cache", ["outcome"], registry=registry)
        self._workers = Gauge("crosscope_workers", "Inference workers", ["state"], registry=registry)
        self._waiting = Gauge("crosscope_admission_waiting", "Calls that wait for admission", registry=registry)
        self._oldest = Gauge("crosscope_admission_oldest_seconds", "How long the first has waited", registry=registry)
        if home is not None:
            disk = Gauge("crosscope_disk_free_bytes", "Free room below the home", registry=registry)
            disk.set_function(lambda: free_bytes(home))
        self._callers: set[str] = set()
        self._recent: deque[tuple[float, float | None, bool]] = deque(maxlen=_MAX_REMEMBERED)
        """When a call ended, how long it took (None for a stream), and whether it went well."""
        self._num_in_flight = 0

    def began(self) -> None:
        """Counts a call that has begun."""
        self._num_in_flight += 1
        self._in_flight.inc()

    def called(self, method: str, status: str, caller: str, seconds: float, *, is_stream: bool = False) -> None:
        """Counts a call that has ended. `caller` is a token's name, or the address of a connection."""
        self._num_in_flight -= 1
        self._in_flight.dec()
        self._calls.labels(method, status, self.label(caller)).inc()
        self._seconds.labels(method).observe(seconds)
        self._recent.append((self._clock(), None if is_stream else seconds, status == "OK"))

    def failed(self, reason: str) -> None:
        """Counts an error by the name that programs know it by (ErrorInfo.reason): "OVERLOADED", "BUG"."""
        self._errors.labels(reason).inc()

    def worker_answered(self, method: str, seconds: float) -> None:
        """Counts an inference worker's answer."""
        self._worker_seconds.labels(method).observe(seconds)

    def looked_up(self, outcome: str) -> None:
        """Counts a look-up in the cache: "hit", "miss", "failed" or "skipped"."""
        self._cache.labels(outcome).inc()

    def watch_workers(self, num_alive: Callable[[], int], num: int) -> None:
        """Shows how many of `num` inference workers serve."""
        self._workers.labels("alive").set_function(num_alive)
        self._workers.labels("away").set_function(lambda: num - num_alive())

    def watch_admission(self, num_waiting: Callable[[], int], oldest_s: Callable[[], float]) -> None:
        """Shows the calls that wait for admission, and how long the first of them has waited."""
        self._waiting.set_function(num_waiting)
        self._oldest.set_function(oldest_s)

    def traffic(self) -> Traffic:
        """What went through in the last WINDOW_S."""
        since = self._clock() - WINDOW_S
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        recent = list(self._recent)
        times = sorted(seconds for _, seconds, _ in recent if seconds is not None)
        errors = sum(not went_well for _, _, went_well in recent)
        return Traffic(
            calls_per_s=len(recent) / WINDOW_S,
            errors_per_s=errors / WINDOW_S,
            p50_ms=1000 * quantile(times, 0.5),
            p99_ms=1000 * quantile(times, 0.99),
            in_flight=self._num_in_flight,
        )

    def label(self, caller: str) -> str:
        """What a caller is called here: the token's name, NO_NAME without one, OTHERS for all beyond MAX_CALLERS."""
        if not (caller := token_name(caller)):
            return NO_NAME
        if caller not in self._callers and len(self._callers) >= MAX_CALLERS:
            return OTHERS
        self._callers.add(caller)
        return caller


def token_name(caller: str) -> str:
    """The name of a caller's token; empty for a connection's address (ipv4:127.0.0.1:40000, unix:) and nobody."""
    return "" if caller == "nobody" or ":" in caller else caller


def quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed; 0 of nothing."""
    return ascending[math.ceil(share * len(ascending)) - 1] if ascending else 0.0


def _histogram(name: str, meaning: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, meaning, ["method"], buckets=_SECONDS, registry=registry)


def free_bytes(folder: Path) -> float:
    """Free room on a folder's disk; NaN where the folder cannot be asked."""
    try:
        return float(shutil.disk_usage(folder).free)
    except OSError:
        return float("nan")
