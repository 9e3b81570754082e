"""The tests marked `gpu`, on the device: how many fail, and which.

Importing takes longer than most tests, so the files are divided among a few processes. A failed kernel takes the device
from all later tests of its process: those fail too, and a process that dies says which file it was in.
"""

import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.rows import Run, main

ROOT = Path(__file__).parents[2]
AT_ONCE = 4
"""Processes that run side by side."""
LONG = Path("tests/worker/training/test_adam.py")
"""A file whose 18 cases compile a kernel each; it did not end beside others."""
_OPTIONS = ("-m", "gpu", "-v", "--tb=short", "-n0", "-p", "no:cacheprovider", "-W", "default", "-p", "bench.gpu.turns")
_LINE = re.compile(r"^(tests/\S+?\.py)::(.*?)(?: (PASSED|FAILED|ERROR|SKIPPED)\b.*)?$")
"""A test's line, written when it begins; its outcome follows when it ends."""


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
    """Why not all of its tests were run."""


def rows(run: Run) -> None:
    """One row for each file, and one for all: the tests that failed, or could not be collected, or did not end."""
    files = marked()
    groups = divided(files)
    every: list[Found] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(lambda group: _run(run, group), groups):
            every += [_write(run, each) for each in found]
    failed = sum(found.failed + (found.error is not None) for found in every)
    passed, skipped = (sum(getattr(found, what) for found in every) for what in ("passed", "skipped"))
    counts = {"passed": passed, "skipped": skipped, "files": len(files)}
    run.row("tests.failed", failed, "failed", "without a device these tests are skipped", **counts)


def divided(files: list[Path]) -> list[list[Path]]:
    """The files of each process; LONG has one to itself."""
    others = [file for file in files if file != LONG]
    num_groups = min(AT_ONCE - (LONG in files), len(others))
    return [[file] for file in files if file == LONG] + [others[first::num_groups] for first in range(num_groups)]


def _run(run: Run, files: list[Path]) -> list[Found]:
    """Runs the marked tests of some files in one process, until the section's time ends."""
    seconds = max(1.0, run.left() - 4)
    command = [sys.executable, "-m", "pytest", *_OPTIONS, "--continue-on-collection-errors", *map(str, files)]
    try:
        done = subprocess.run(
            command, check=False, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
        said, broken = done.stdout, None
        if done.returncode not in (0, 1):
            broken = f"pytest ended with status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        said, broken = (expired.output or b"").decode(errors="replace"), f"not ended after {seconds:.0f} s"
    print(said, file=sys.stderr)
    return read(files, said.splitlines(), broken)


def read(files: list[Path], lines: list[str], broken: str | None) -> list[Found]:
    """What pytest printed of the files that one process runs in turn; `broken`: why it did not come to its end."""
    counts = {file: Counter[str]() for file in files}
    bad: dict[Path, list[str]] = {file: [] for file in files}
    at = -1
    for line in lines:
        if (test := _LINE.match(line)) and Path(test[1]) in counts:
            file = Path(test[1])
            at = max(at, files.index(file))
            counts[file][test[3] or "begun"] += 1
        elif line.startswith(("FAILED ", "ERROR ")) and (file := Path(re.split(r"::| ", line)[1])) in counts:
            bad[file].append(line[:200])
            counts[file]["uncollected"] += "::" not in line.split(" - ")[0]
    last = " / ".join(line for line in lines[-3:] if line.strip())[-200:]
    found: list[Found] = []
    for index, file in enumerate(files):
        number, error = counts[file], None
        if broken and index >= max(at, 0):
            where = f" in {_begun_last(lines, file)}" if index == at else " before it was begun"
            error = f"{broken}{where}: {last}"
        elif not number:
            error = f"no test of it was run: {last}"
        failed = number["FAILED"] + number["ERROR"] + number["uncollected"]
        found.append(Found(file, number["PASSED"], failed, number["SKIPPED"], tuple(bad[file][:5]), error))
    return found


def _begun_last(lines: list[str], file: Path) -> str:
    """The test of a file that was begun last."""
    begun = [test[2] for line in lines if (test := _LINE.match(line)) and test[1] == str(file)]
    return begun[-1] if begun else "none"


def _write(run: Run, found: Found) -> Found:
    name = f"tests.{found.file.stem.removeprefix('test_')}"
    if found.error:
        run.error(name, found.error)
    else:
        counts = {"passed": found.passed, "skipped": found.skipped, "first": found.first}
        run.row(name, found.failed, "failed", "without a device these tests are skipped", **counts)
    return found


def marked() -> list[Path]:
    """The files of tests that have a test marked `gpu`, relative to the root."""
    mark = re.compile(r"^@?(pytestmark = )?pytest\.mark\.gpu\b", re.MULTILINE)
    found = (ROOT / "tests").rglob("test_*.py")
    return sorted(path.relative_to(ROOT) for path in found if mark.search(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main("tests", rows))
