"""The Progress of a job process: buffers the job's reports and passes them on about five times a second.

The job only appends to a buffer; a separate thread talks to Redis and learns whether the job should stop. While Redis
is away the buffer keeps only figures and changes of stage, so training continues. Knows nothing about RQ.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from crosscope_proto import job_record
from crosscope_proto.beats import Beats
from crosscope_worker.jobs.claim import Claim, News, Standing, as_message, is_passing
from crosscope_worker.jobs.journal import Journal
from crosscope_worker.jobs.stages import Shares
from crosscope_worker.work import Cancelled, LostClaim

FLUSH_S = 0.2
AWAY_S = 1.0
"""Pause after a call that Redis did not answer."""
MAX_EVENTS_A_FLUSH = 500
LOST_GRACE_S = 10.0
"""An attempt whose job has been taken over ends at its next step, or after this time wherever it is."""


@dataclass(frozen=True)
class _Event:
    at: float
    stage: str
    fraction: float
    message: str
    step: int
    metrics: Mapping[str, float]
    rel_norms: Sequence[int]
    begins: bool
    """Whether the event begins a stage."""
    total: float
    """Share of the whole job that is done."""
    eta_s: float

    @property
    def keep(self) -> bool:
        """Whether the event must not be left out."""
        return self.begins or bool(self.metrics)

    def fields(self) -> dict[str, str]:
        return {
            "at": repr(self.at),
            "stage": self.stage,
            "fraction": f"{self.fraction:.6g}",
            "message": self.message,
            "step": str(self.step),
            "metrics": json.dumps(dict(self.metrics)),
        } | ({"rel_norms": json.dumps(list(self.rel_norms))} if self.rel_norms else {})


class JobPulse:
    """The beats of a job's process: of the thread that reports, and of the work as it reports progress."""

    def __init__(self, beats: Beats, reports_s: float, work_s: float) -> None:
        """`reports_s` and `work_s`: how long each may stand still."""
        self._beats, self._reports_s, self._work_s = beats, reports_s, work_s

    def reports(self) -> None:
        """The reporting thread moves."""
        self._beats("reporting thread", self._reports_s)

    def work(self) -> None:
        """The work has come to a step."""
        self._beats("work", self._work_s)


class Reporter:
    """A Progress (work.py). Raises Cancelled or LostClaim from the next call once the job should stop."""

    def __init__(
        self,
        claim: Claim,
        journal: Journal,
        pulse: JobPulse,
        stopping: Callable[[], bool],
        shares: Shares | None = None,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        """`stopping` says whether this process should end and leave the job to a later attempt.

        `shares` compute how far the whole job is. `give_up` is called, on the reporter's own thread, if a job that
        should stop reaches no step, for instance during a long product or write: within STOP_WITHIN_S if it was
        cancelled, within LOST_GRACE_S if another attempt has taken over.
        """
        self._claim, self._journal, self._pulse, self._stopping = claim, journal, pulse, stopping
        self._shares, self._give_up = shares or Shares(()), give_up
        self._late_at, self._is_stopping, self.is_publishing = math.inf, False, False
        """`is_publishing`: the fence was passed, so the job completes its publication."""
        self._lock = threading.RLock()
        self._events: list[_Event] = []
        self._stage, self._stage_began, self._last_share = "", time.monotonic(), 0.0
        self._stage_seconds: dict[str, float] = {}
        self._standing = Standing(holds=True, cancelled=False)
        self._closed, self._deadline = threading.Event(), math.inf
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

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
        """See Progress."""
        self.check()
        share = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
        figures = {name: float(value) for name, value in (metrics or {}).items()}
        with self._lock:
            if threading.current_thread() is threading.main_thread() or share > self._last_share:
                self._pulse.work()  # another thread may only say that time passes, as while a model is loaded
            self._last_share = share
            begins = stage != self._stage
            if begins:
                self._end_stage()
                self._stage = stage
                self._journal.write("stage", stage=stage, message=message)
            else:
                self._journal.say(stage, message)
            self._shares.at(stage, share)
            now, total, eta_s = time.time(), self._shares.total, self._shares.eta_s
            event = _Event(now, stage, share, as_message(message), step, figures, rel_norms, begins, total, eta_s)
            if self._events and not self._events[-1].keep and self._events[-1].stage == stage:
                self._events.pop()
            self._events.append(event)

    def check(self) -> None:
        """Raises Cancelled or LostClaim if the job should stop."""
        if self._stopping():
            raise LostClaim("this worker is stopping; a later attempt continues the job")
        if self._bug is not None:
            raise self._bug
        if not self._standing.holds:
            self._is_stopping = True
            raise LostClaim("another attempt has taken over this job")
        if self._standing.cancelled:
            self._is_stopping = True
            raise Cancelled("someone asked the job to stop")

    def close(self, wait_s: float) -> None:
        """Ends the last stage and passes on the rest of the buffer; waits up to `wait_s` if Redis is away."""
        self._end_stage()
        self._deadline = time.monotonic() + wait_s
        self._closed.set()
        self._thread.join()

    def _end_stage(self) -> None:
        now = time.monotonic()
        if self._stage:
            with self._lock:
                seconds = self._stage_seconds.get(self._stage, 0.0) + now - self._stage_began
                self._stage_seconds[self._stage] = seconds
        self._stage_began = now

    def _run(self) -> None:
        try:
            self._pass_on()
        except Exception as error:  # raised from the job's next call
            self._bug = error

    def _pass_on(self) -> None:
        pause_s = FLUSH_S
        while True:
            self._pulse.reports()
            closed = self._closed.wait(pause_s)
            answered = self._flush()
            if not closed:
                self._watch()
            pause_s = FLUSH_S if answered else AWAY_S
            if closed:
                if (answered and not self._events) or self._is_hopeless():
                    return
                if not answered:
                    time.sleep(AWAY_S)

    def _watch(self) -> None:
        """Gives up a job that should stop and reaches no step."""
        now = time.monotonic()
        if self._standing.cancelled:
            self._late_at = min(self._late_at, now + job_record.STOP_WITHIN_S)
        if not self._standing.holds:
            self._late_at = min(self._late_at, now + LOST_GRACE_S)
        if now > self._late_at and self._give_up and not self._is_stopping and not self.is_publishing:
            self._give_up()

    def _is_hopeless(self) -> bool:
        late = time.monotonic() > self._deadline
        return late or self._stopping() or not self._standing.holds

    def _flush(self) -> bool:
        """Passes on the oldest events; returns whether Redis answered."""
        with self._lock:
            events = self._events[:MAX_EVENTS_A_FLUSH]
            stages = {name: f"{value:.3f}" for name, value in self._stage_seconds.items()}
        figures = {name: value for event in events for name, value in event.metrics.items()}
        latest: dict[str, str] = {}
        for event in events:
            latest |= {"stage": event.stage, "fraction": f"{event.fraction:.6g}"}
            latest |= {"total_fraction": f"{event.total:.6g}", "eta_s": f"{event.eta_s:.3f}"}
            if event.message or event.begins:
                latest["message"] = event.message
        metrics = {name: repr(value) for name, value in figures.items()}
        try:
            self._standing = self._claim.report(News([event.fields() for event in events], latest, metrics, stages))
        except RedisError as error:
            if not is_passing(error):
                raise
            return False
        with self._lock:
            sent = {id(event) for event in events}
            self._events = [event for event in self._events if id(event) not in sent]
        return True
