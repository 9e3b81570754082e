"""A job's process that is not dead but does not move: one that is stopped, and one that comes to no step."""

import os
import signal

from crosscope_proto.v1 import jobs_pb2
from tests.jobs.rig import Rig, is_alive

SUCCEEDED = jobs_pb2.JOB_STATE_SUCCEEDED


def test_a_job_that_hangs_is_killed_and_resumed(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    rig.start_server()
    rig.start_worker(CROSSCOPE_WORKER_JOB_BEAT_S="3", CROSSCOPE_WORKER_JOB_SILENT_S="5")
    job, deaf = rig.submit("hold-on"), rig.submit("deaf-one")
    rig.holding(job.id)
    first = rig.pid("hold-on")
    os.kill(first, signal.SIGSTOP)
    given_back = rig.wait_for(job.id, lambda job: "resumed" in job.message)
    how = "Its process hung (no sign of life from its reporting thread for 3 s) and was killed"
    assert given_back.message == f"{how}; it will be resumed."
    assert not is_alive(first)
    rig.go("hold-on")
    done = rig.wait(job.id)
    assert (done.state, done.attempt, rig.published("hold-on")) == (SUCCEEDED, 2, 1)
    # The other one's reporting thread beats, but its work does not come to a step.
    given_back = rig.wait_for(deaf.id, lambda job: "resumed" in job.message)
    assert given_back.message.startswith("Its process hung (no sign of life from its work for 5 s)")
