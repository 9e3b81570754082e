"""An installation that works for as long as is asked for: memory, descriptors, threads and disk must stay flat.

`--minutes 60` is the hour of the table. What is compared are means of the last and of the second quarter: the first is
for what warms up.
"""

import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import psutil

from tests.stress.rows import minutes, say
from tests.stress.up import MARKS, Callers, Up, Work, page, prompt, running, same_prompt

EVERY_S = 2.0
GROWTH = 1.1
"""A figure is flat if its last mean is at most this many times the early one, or little more in absolute terms."""
SLACK = {"MB": 20.0, "descriptors": 8.0, "threads": 4.0}
BOUNDS = {("cache", "MB"): 290.0}
"""A figure that may grow up to a bound: the cache fills its 256 MiB, and needs some for itself."""
LASTING = [name for name in MARKS if name != "a job's process"]


@dataclass(frozen=True)
class Sample:
    """What a process holds at a moment."""

    name: str
    what: str
    value: float


def sample(up: Up) -> list[Sample]:
    """What each process holds now."""
    found: list[Sample] = []
    for name in LASTING:
        if (pid := up.pid(name)) is None:
            continue
        process = psutil.Process(pid)
        figures = {
            "MB": process.memory_info().rss / 1e6,
            "descriptors": float(process.num_fds()),
            "threads": float(process.num_threads()),
        }
        found += [Sample(name, what, value) for what, value in figures.items()]
    return found


def keep_jobs_coming(work: Work, stop: threading.Event) -> None:
    """One short job after the other, at most one in 20 s."""
    while not stop.wait(20):
        if not work.ids or work.has_ended(work.ids[-1]):
            work.submit(1, steps=20)


def main() -> int:
    """Soaks for as long as is asked for, and prints a row for each figure that grew and one for the rest."""
    seconds, work_stop = 60 * minutes(), threading.Event()
    series: dict[tuple[str, str], list[float]] = defaultdict(list)
    with running("--log-mb", "1") as up:
        work = Work(up)
        feeder = threading.Thread(target=keep_jobs_coming, args=(work, work_stop), daemon=True)
        feeder.start()
        with Callers(up.address, prompt) as new, Callers(up.address, same_prompt) as known, Callers(up.address, page):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for each in sample(up):
                    series[each.name, each.what].append(each.value)
                time.sleep(EVERY_S)
        work_stop.set()
        feeder.join()
        lost, doubled, _ = work.outcome()
        logs_mb = sum(path.stat().st_size for path in (up.home / "logs").iterdir()) / 1e6
        restarts = sum("Starting it again" in line for line in up.said)
    grown = 0
    for (name, what), values in series.items():
        quarter = max(1, len(values) // 4)
        early, late = sum(values[quarter : 2 * quarter]) / quarter, sum(values[-quarter:]) / quarter
        if late > max(early * GROWTH, early + SLACK[what], BOUNDS.get((name, what), 0.0)):
            grown += 1
            say(f"soak: {what} of {name}", f"{early:.0f} to {late:.0f}", what, "flat", ok=False)
    value = (
        f"{len(new.took)} new and {len(known.took)} known prompts, {len(new.refused) + len(known.refused)} refused; "
        f"{len(work.ids)} jobs, {lost} lost, {doubled} published twice; {restarts} restarts; logs {logs_mb:.1f} MB; "
        f"{len(series) - grown} of {len(series)} figures flat"
    )
    ok = not (grown or lost or doubled or restarts or new.refused or known.refused)
    say(f"soak of {seconds / 60:.0f} min", value, "", "memory, descriptors, threads flat; nothing lost", ok)
    return 0


if __name__ == "__main__":
    sys.exit(main())
