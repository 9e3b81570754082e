"""`python -m crosscope_server`: the front door. Settings come from the environment (settings.py)."""

import asyncio
import os
import signal
import sys

from crosscope_proto.logs import configure_logging
from crosscope_proto.settings import SettingsError, read_settings
from crosscope_proto.tracing import configure_tracing
from crosscope_server.settings import Settings


def main() -> int:
    """Serves until SIGTERM or SIGINT; the exit code is 1 if it could not start."""
    try:
        settings = read_settings(Settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    configure_logging("server", settings.log_level)
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
    from crosscope_server.serve import serving

    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, told_to_stop.set)
    async with serving(settings):
        await told_to_stop.wait()


if __name__ == "__main__":
    sys.exit(main())
