"""`python -m crosscope_worker serve` is the inference process, `python -m crosscope_worker jobs` the job worker."""

import argparse
import logging
import os
import sys

from crosscope_proto.logs import configure_logging
from crosscope_proto.settings import check_settings, unknown_variables
from crosscope_proto.standby import await_call
from crosscope_worker.jobs.settings import JobSettings
from crosscope_worker.serve.settings import ServeSettings


def main() -> int:
    """Runs the process that the command line names; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m crosscope_worker", description=__doc__)
    parser.add_argument("process", choices=("serve", "jobs"))
    said = "only say which settings are wrong or unknown; NAME: variables that are meant for this process alone"
    parser.add_argument("--check", nargs="*", metavar="NAME", help=said)
    given = parser.parse_args()
    kind, other = (JobSettings, ServeSettings) if given.process == "jobs" else (ServeSettings, JobSettings)
    if given.check is not None:
        return check_settings(kind, other, own=given.check)
    if given.process == "jobs":
        from crosscope_worker.jobs.process import main as run
    else:
        # Read by OpenMP when torch loads: idle threads would spin on cores that server and client need to answer.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from crosscope_worker.serve.process import run
    await_call()
    if lines := unknown_variables(kind, other):
        configure_logging("jobs" if given.process == "jobs" else "inference")
        for line in lines:
            logging.getLogger("crosscope_worker").warning(line)
    return run()


if __name__ == "__main__":
    sys.exit(main())
