"""Runs every file of this folder, and prints one table of the rows that they print. `make stress` calls it.

`test_*.py` runs in pytest with the marker "stress"; a file with a main part runs as a script. Files run one after the
other, because they measure times.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.stress.rows import MINUTES, Row, read, table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTEST = ("-m", "pytest", "-n0", "-q", "-s", "-m", "stress", "-o", "timeout=0")


def files(only: Sequence[str]) -> list[Path]:
    """The files that measure; with `only`, those whose name holds one of its words."""
    found = [path for path in sorted(HERE.glob("*.py")) if not path.name.startswith("_") and measures(path)]
    return [path for path in found if not only or any(word in path.stem for word in only)]


def measures(path: Path) -> bool:
    """Whether a file is a test or a script, and not what those share."""
    return path.name.startswith("test_") or '__name__ == "__main__"' in path.read_text("utf-8")


def run(path: Path, minutes: float) -> Iterator[Row]:
    """The rows that a file prints, as it prints them, and one more if it fails or hangs."""
    where = [*PYTEST, str(path)] if path.name.startswith("test_") else [str(path)]
    environment = {**os.environ, MINUTES: str(minutes), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    begun, limit_s = time.monotonic(), 60 * (3 * minutes + 10)
    with subprocess.Popen(
        [sys.executable, *where], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        stop = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        try:
            for line in process.stdout:
                if (row := read(line)) is not None:
                    yield row
                else:
                    sys.stderr.write(line)
            code = process.wait()
        finally:
            stop.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        seconds = round(time.monotonic() - begun)
        yield Row(path.stem, f"exit code {code}", f"after {seconds} s", "0", ok=False)


def main() -> int:
    """The exit code: 1 if a row missed what it should reach."""
    parser = argparse.ArgumentParser(prog="make stress")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long each file may measure (default 5)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only files with such a word in the name")
    parser.add_argument("--list", action="store_true", help="say which files there are")
    given = parser.parse_args()
    chosen = files(given.only)
    if given.list:
        print("\n".join(path.stem for path in chosen))
        return 0
    rows: list[Row] = []
    for path in chosen:
        sys.stderr.write(f"{path.stem} …\n")
        for row in run(path, given.minutes):
            sys.stderr.write(
                f"  {row.row}: {row.value} {row.unit} (reach: {row.reach}){'' if row.ok else '  MISSED'}\n"
            )
            rows.append(row)
    print(table(rows))
    return 0 if rows and all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
