"""The tests marked `gpu`, on the device: how many fail, and which."""

import os
import re
import subprocess
import sys
from pathlib import Path

from bench.gpu.rows import Run, main

ROOT = Path(__file__).parents[2]
PROCESSES = 4


def rows(run: Run) -> None:
    """One row: the number of tests that failed or could not be collected."""
    run.part("tests", lambda: _run(run), run.left() - 2, use="free")


def _run(run: Run) -> None:
    files = marked()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
    ]
    command += ["-p", "bench.gpu.turns", "-n", str(PROCESSES), "--dist=worksteal", *map(str, files)]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            for line in process.stdout:
                print(line, end="", file=sys.stderr)
                lines.append(line.rstrip())
        finally:
            process.kill()
    report(run, lines, process.returncode, len(files))


def report(run: Run, lines: list[str], status: int, num_files: int) -> None:
    """Writes the row of what pytest printed; an error where it came to no summary."""
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])}
    if status not in (0, 1, 5) or not counts:
        run.error("tests.failed", f"pytest ended with status {status}: {' / '.join(lines[-3:])}")
        return
    bad = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    run.row(
        "tests.failed",
        counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0),
        "failed",
        passed=counts.get("passed", 0),
        skipped=counts.get("skipped", 0),
        files=num_files,
        first=[line[:200] for line in bad[:8]],
    )


def marked() -> list[Path]:
    """The files of tests that have a test marked `gpu`, relative to the root."""
    found = (ROOT / "tests").rglob("test_*.py")
    return sorted(path.relative_to(ROOT) for path in found if "mark.gpu" in path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main("tests", rows))
