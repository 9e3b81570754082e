"""kill -9 and SIGSTOP of each process under load: what callers see, and whether jobs are lost or published twice."""

import os
import signal
import sys
import time

from tests.stress.rows import minutes, say
from tests.stress.up import MARKS, Callers, Up, Work, page, prompt, running, until

MOST_S = {signal.SIGKILL: 5.0, signal.SIGSTOP: 30.0}
"""The longest that a caller may wait: for a process that is stopped, up to its deadline."""
BACK_S = 30.0
"""A process that was killed is back within this time."""


def hit(up: Up, name: str, number: signal.Signals, hold_s: float) -> None:
    """Sends a signal to a process while callers ask and a job runs; prints what came of it."""
    work = Work(up)
    work.submit(1)
    work.submit(1, steps=20)
    if not until(work.running, 120):
        raise RuntimeError(f"no job ran: {up.said}")
    with Callers(up.address, prompt) as prompts, Callers(up.address, page, 1) as pages:
        time.sleep(2)
        victim = up.pid(name)
        if victim is None:
            raise RuntimeError(f"{name} does not run: {up.said}")
        before, begun = len(prompts.took), time.monotonic()
        os.kill(victim, number)
        if number == signal.SIGSTOP:
            until(lambda: not alive(victim), hold_s)
            if alive(victim):
                os.kill(victim, signal.SIGCONT)
        until(lambda: up.pid(name) not in (None, victim), 90 if name != "a job's process" else 1)
        back_s = time.monotonic() - begun
        answered = until(lambda: len(prompts.took) > before + 8, 60)
        time.sleep(2)
    lost, doubled, attempts = work.outcome()
    longest = max(prompts.longest_s, pages.longest_s)
    kinds = sorted({text.partition(":")[0] for _, text in [*prompts.refused, *pages.refused]})
    refused = len(prompts.refused) + len(pages.refused)
    ok = not lost and not doubled and answered and longest <= MOST_S[number]
    if number == signal.SIGKILL and name != "a job's process":
        ok = ok and back_s <= BACK_S
    value = (
        f"{lost} jobs lost, {doubled} published twice, {attempts} attempts at most; longest wait {longest:.1f} s; "
        f"{len(prompts.took)} prompts answered, {refused} calls refused {kinds}; started again after {back_s:.0f} s"
    )
    how = "kill -9" if number == signal.SIGKILL else f"SIGSTOP up to {hold_s:.0f} s"
    say(f"{how} of {name}", value, "", f"0 lost, 0 twice, longest wait {MOST_S[number]:g} s", ok)


def orphans(up: Up) -> None:
    """kill -9 of the supervisor while its server is stopped: nothing stays, and a new start takes the same port.

    In the end that start is told to stop.
    """
    server, port = up.pid("server"), up.address.rpartition(":")[2]
    assert server is not None
    left = [pid for name in MARKS if (pid := up.pid(name))]
    os.kill(server, signal.SIGSTOP)
    up.process.kill()
    up.process.wait()
    begun = time.monotonic()
    gone = until(lambda: not any(map(alive, left)), 20)
    gone_s = time.monotonic() - begun
    again = Up(up.home, "--port", port)
    served = again.address == up.address
    begun = time.monotonic()
    again.close()
    ended_s = time.monotonic() - begun
    value = f"{len(left)} processes gone after {gone_s:.1f} s; served again at the same port: {served}"
    say("kill -9 of the supervisor while its server is stopped", value, "", "no process stays", ok=gone and served)
    say("SIGTERM of crosscope up: everything has ended", ended_s, "s later", "<= 5", ok=ended_s <= 5)


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123 (a path of the kernel's)
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> int:
    """Hits each process in turn, twice, and the supervisor in the end."""
    hold_s = min(60.0, 12 * minutes())
    only = sys.argv[1:] or list(MARKS)
    with running() as up:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for name in only:
                hit(up, name, number, hold_s)
        orphans(up)
    return 0


if __name__ == "__main__":
    sys.exit(main())
