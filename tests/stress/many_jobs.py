"""Five hundred jobs behind one, and the end of all of them at once."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from fixtures_waiting import until

from crosscope_proto.v1 import jobs_pb2
from tests.jobs.rig import Rig
from tests.stress.rows import say

COUNT = 500
CALL_S = 1.0
"""A look at a job takes at most this long while so many wait."""
END_S = 60.0


def main() -> int:
    """Queues, looks, and cancels the first, for which the others wait."""
    rig = Rig()
    try:
        rig.start_redis()
        rig.start_server()
        rig.start_worker()
        first = rig.submit("hold-many")
        rig.holding(first.id)
        begun = time.monotonic()
        with ThreadPoolExecutor(8) as people:
            ids = [job.id for job in people.map(lambda number: rig.submit(f"many-{number}", first.id), range(COUNT))]
        submit_s = time.monotonic() - begun
        slowest = 0.0
        for job_id in ids[::10]:
            begun = time.monotonic()
            rig.get(job_id)
            slowest = max(slowest, time.monotonic() - begun)
        begun = time.monotonic()
        rig.cancel(first.id)
        states: dict[str, int] = {}

        def over() -> bool:
            for job_id in ids:
                if states.get(job_id, 0) != jobs_pb2.JOB_STATE_CANCELLED:
                    states[job_id] = rig.get(job_id).state
            return all(state == jobs_pb2.JOB_STATE_CANCELLED for state in states.values())

        until(over, 2 * END_S)
        end_s = time.monotonic() - begun
    finally:
        rig.close()
    value = f"submitted in {submit_s:.1f} s; slowest look {slowest:.2f} s; all cancelled {end_s:.1f} s after the first"
    ok = slowest <= CALL_S and end_s <= END_S
    say(f"{COUNT} queued jobs", value, "", f"look {CALL_S:g} s, end {END_S:g} s", ok)
    return 0


if __name__ == "__main__":
    sys.exit(main())
