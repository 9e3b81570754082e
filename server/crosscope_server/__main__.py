"""`python -m crosscope_server`: the front door. Settings come from the environment (settings.py).

With `--check` it only says which settings are wrong or unknown; the exit code is then 1.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys

from crosscope_proto.beats import Beats
from crosscope_proto.ending import WRONG_SETTINGS, end_within
from crosscope_proto.logs import configure_logging
from crosscope_proto.settings import SettingsError, check_settings, read_settings, unknown_variables
from crosscope_proto.tracing import configure_tracing
from crosscope_server.settings import Settings

END_S = 3.5
"""After so long a server that was told to stop is gone: 1.5 s for calls under way, and 2 s to close the rest."""
LOOP_S = 10.0
"""A server whose event loop has not moved for this long counts as hung."""
log = logging.getLogger("crosscope_server")


def main() -> int:
    """Serves until SIGTERM or SIGINT; the exit code is 1 or WRONG_SETTINGS if it could not start."""
    parser = argparse.ArgumentParser(prog="python -m crosscope_server", description="The front door.")
    said = "only say which settings are wrong or unknown; NAME: variables that are meant for this process alone"
    parser.add_argument("--check", nargs="*", metavar="NAME", help=said)
    if (own := parser.parse_args().check) is not None:
        return check_settings(Settings, own=own)
    try:
        settings = read_settings(Settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_SETTINGS
    configure_logging("server", settings.log_level)
    for line in unknown_variables(Settings):
        log.warning(line)
    configure_tracing("server")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported; our own log says what matters
    from crosscope_server.serve import StartError

    try:
        asyncio.run(_serve(settings))
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    from crosscope_server.memory import settle
    from crosscope_server.serve import serving

    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, told_to_stop.set)
    beats = Beats.from_environment()
    async with serving(settings, beats.ages):
        settle()
        beating = asyncio.create_task(beats.go_on("event loop", LOOP_S))
        await told_to_stop.wait()
        end_within(END_S)
        beating.cancel()


if __name__ == "__main__":
    sys.exit(main())
