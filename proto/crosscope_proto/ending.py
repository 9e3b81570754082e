"""How a process ends: in time, whatever hangs in it, and with which code. Knows nothing about what it does."""

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Final

WRONG_SETTINGS: Final = 78
"""The exit code of a process that cannot start with its settings (EX_CONFIG of sysexits.h): no new start helps."""
_FOR_THE_LOG_S = 1.0

log = logging.getLogger(__name__)


def end_within(seconds: float) -> None:
    """Has this process gone after so many seconds, whether it has ended by itself or not.

    Python waits for ever for a thread that is stuck in a read, and asyncio for a task that does not let itself be
    cancelled. Then the log says where each thread stood, and the process ends with code 0, as it was told to.
    """
    threading.Thread(target=_end, args=(seconds,), name="ending", daemon=True).start()
    # Where not even a thread of Python moves, this does, and ends the process with code 1.
    faulthandler.dump_traceback_later(seconds + _FOR_THE_LOG_S, exit=True, file=sys.stderr)


def _end(seconds: float) -> None:
    time.sleep(seconds)
    log.error("cut off: it had not ended in time", extra={"after_s": seconds, "stood_at": where_threads_stand()})
    sys.stderr.flush()
    os._exit(0)


def where_threads_stand() -> dict[str, str]:
    """File, line and function of each other thread, by its name: the last place that is our own, else the last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found: dict[str, str] = {}
    for ident, frame in sys._current_frames().items():  # pyright: ignore[reportPrivateUsage]
        if ident == threading.get_ident():
            continue
        places = [each for each in traceback.extract_stack(frame) if each.filename != threading.__file__]
        ours = [each for each in places if "crosscope" in Path(each.filename).parent.as_posix()]
        if last := (ours or places)[-1:]:
            found[names.get(ident, str(ident))] = f"{Path(last[0].filename).name}:{last[0].lineno} {last[0].name}"
    return found
