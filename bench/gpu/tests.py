"""The tests marked `gpu`, on the device: how many fail, and which.

Each file is run in a process of its own, because a failed kernel takes the device from all later tests of its process.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.rows import Run, main

ROOT = Path(__file__).parents[2]
AT_ONCE = 4
"""Files whose tests run side by side."""


@dataclass(frozen=True)
class Found:
    """What pytest said of a file."""

    file: Path
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    first: tuple[str, ...] = ()
    """Its lines of what failed."""
    error: str | None = None
    """Why pytest came to no summary."""


def rows(run: Run) -> None:
    """One row for each file, and one for all: the tests that failed, or could not be collected, or did not end."""
    files = marked()
    deadline = run.left() - 3
    with ThreadPoolExecutor(AT_ONCE) as pool:
        every = [_write(run, found) for found in pool.map(lambda file: _run(run, file, deadline), files)]
    failed = sum(found.failed + (found.error is not None) for found in every)
    passed, skipped = (sum(getattr(found, what) for found in every) for what in ("passed", "skipped"))
    run.row("tests.failed", failed, "failed", passed=passed, skipped=skipped, files=len(files))


def _run(run: Run, file: Path, deadline: float) -> Found:
    """Runs the marked tests of a file until the section has `deadline` seconds less than now."""
    options = [
        "-m",
        "gpu",
        "-q",
        "--tb=short",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
        "-p",
        "bench.gpu.turns",
    ]
    seconds = min(deadline, run.left() - 3)
    if seconds < 1:
        return Found(file, error="not begun: no time left to this section")
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    try:
        done = subprocess.run(
            command, check=False, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as expired:
        said = (expired.output or b"").decode(errors="replace")
        print(said, file=sys.stderr)
        return Found(file, error=f"did not end within {seconds:.0f} s: {' '.join(said.split())[-200:]}")
    print(done.stdout, file=sys.stderr)
    return read(file, done.stdout.splitlines(), done.returncode)


def read(file: Path, lines: list[str], status: int) -> Found:
    """What pytest printed of a file, and its exit status."""
    last = lines[-1] if lines else ""
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    if status not in (0, 1) or not counts:
        return Found(file, error=f"pytest ended with status {status}: {' / '.join(lines[-3:])[-300:]}")
    bad = tuple(line[:200] for line in lines if line.startswith(("FAILED ", "ERROR ")))
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    return Found(file, counts.get("passed", 0), failed, counts.get("skipped", 0), bad[:5])


def _write(run: Run, found: Found) -> Found:
    name = f"tests.{found.file.stem.removeprefix('test_')}"
    if found.error:
        run.error(name, found.error)
    else:
        run.row(name, found.failed, "failed", passed=found.passed, skipped=found.skipped, first=found.first)
    return found


def marked() -> list[Path]:
    """The files of tests that have a test marked `gpu`, relative to the root."""
    mark = re.compile(r"^@?(pytestmark = )?pytest\.mark\.gpu\b", re.MULTILINE)
    found = (ROOT / "tests").rglob("test_*.py")
    return sorted(path.relative_to(ROOT) for path in found if mark.search(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main("tests", rows))
