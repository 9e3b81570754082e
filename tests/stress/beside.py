"""What prompts take while a job trains on all cores. `python tests/stress/beside.py` prints the rows."""

import os

from crosscope import Client
from tests.stress import up
from tests.stress.rows import minutes, say

SECONDS = min(60.0, max(10.0, 12 * minutes()))
"""Length of each measurement."""
JOB = """
kind: demo-pair
name: beside
num_layers: 4
hidden_size: 256
base_steps: 100000
chat_steps: 10
"""


def rates(nice: int) -> tuple[float, float]:
    """Prompts a second that eight callers get alone, and while a job with this nice value trains."""
    os.environ["CROSSCOPE_WORKER_JOB_NICE"] = str(nice)
    with up.running("--job-threads", str(os.cpu_count())) as installation:

        def per_s() -> float:
            with up.Callers(installation.address, up.prompt, 8) as asked:
                up.until(lambda: False, SECONDS)
                return len(asked.took) / SECONDS

        alone = per_s()
        with Client(installation.address, timeout_s=30) as client:
            job = client.jobs.submit(JOB)
            up.until(lambda: client.jobs.get(job.id).info.stage == "base", 120)
            up.until(lambda: False, 5)  # the stage's first steps
            beside = per_s()
            job.cancel()
    return alone, beside


def main() -> None:
    """Prints a row for jobs that do not give way, and one for those that do."""
    for nice, reach in ((0, ""), (5, ">= 0.7")):
        alone, beside = rates(nice)
        row = f"prompts of 8 callers beside a training job of nice value {nice}"
        say(row, beside / alone, f"of {alone:.0f}/s alone", reach, ok=not reach or beside >= 0.7 * alone)


if __name__ == "__main__":
    main()
