"""Jobs followed in the background, so that a page can draw the events so far without waiting for more."""

import threading
from collections.abc import Mapping

import numpy as np
import streamlit as st

from crosscope import Client, CrosscopeError, JobEvent


class Follower:
    """Collects the events of one job on a thread of its own until the job has ended."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._events: list[JobEvent] = []
        self._error: CrosscopeError | None = None
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{job_id}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for update in self._client.jobs.get(self._job_id).updates():
                self._events.extend(update.events)
                self._caught_up.set()
        except CrosscopeError as error:
            self._error = error
        self._caught_up.set()

    def events(self, timeout_s: float = 2.0) -> list[JobEvent]:
        """The events so far; waits at most `timeout_s` for the first. Raises the error that ended the following."""
        self._caught_up.wait(timeout_s)
        if self._error:
            raise self._error
        return list(self._events)

    @property
    def has_failed(self) -> bool:
        """Whether following ended with an error, so that a new one is needed."""
        return self._error is not None


@st.cache_resource(max_entries=32, show_spinner=False, validate=lambda follower: not follower.has_failed)
def follower(_client: Client, job_id: str, attempt: int) -> Follower:  # noqa: ARG001
    """The follower of a job's attempt, shared by all viewers. A job that has ended may be queued again."""
    return Follower(_client, job_id)


def series(events: list[JobEvent]) -> tuple[list[int], Mapping[str, np.ndarray]]:
    """Steps and figures of the events that measured any: name to [step] float64, NaN where not measured."""
    measured = [event for event in events if event.metrics]
    names = dict.fromkeys(name for event in measured for name in event.metrics)
    return (
        [event.step for event in measured],
        {name: np.array([event.metrics.get(name, np.nan) for event in measured]) for name in names},
    )
