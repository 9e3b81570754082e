"""A row of the report: one ratio, measured in one run, as a line of text and as a line of JSON.

Knows the form of a result and the machine of the run; does not know what is measured.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bench.timing import Ratio

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Figure:
    """A measured number; `what` names its subject if that is not the project's own code."""

    number: float
    unit: str
    what: str = ""


@dataclass(frozen=True)
class Floor:
    """The figure of the indispensable part of the work, and the ratio of our time to its time."""

    figure: Figure
    ratio: Ratio


@dataclass(frozen=True)
class Target:
    """A bound on one of a row's numbers."""

    of: Literal["ratio", "ours", "floor"]
    bound: Literal["at_least", "at_most"]
    number: float

    def met(self, row: "Row") -> bool:
        """Whether the row's number meets the target; a missing number does not."""
        numbers = {
            "ratio": row.ratio and row.ratio.number,
            "ours": row.ours and row.ours.number,
            "floor": row.floor and row.floor.ratio.number,
        }
        number = numbers[self.of]
        if number is None:
            return False
        return number >= self.number if self.bound == "at_least" else number <= self.number


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    name: str
    """The bench."""
    case: str
    """The name of the row within its bench."""
    sizes: Mapping[str, object]
    """The measured case: sizes, and shares on which the figures depend."""
    ours: Figure | None = None
    reference: Figure | None = None
    ratio: Ratio | None = None
    ratio_is: Literal["times as fast", "times as much"] = "times as fast"
    """"times as much": ours over the reference; smaller is better."""
    floor: Floor | None = None
    targets: tuple[Target, ...] = ()
    not_measured: str | None = None
    """The reason why there are no figures."""

    def met(self) -> bool | None:
        """Whether every target is met; None without targets."""
        return all(target.met(self) for target in self.targets) if self.targets else None


@dataclass(frozen=True)
class Provenance:
    """Date, commit and machine of a run."""

    commit: str
    """The commit; "+" behind it: files in the repository differ from it."""
    hardware: str
    torch_version: str
    date: str
    """UTC, ISO 8601."""
    threads: int
    """Number of threads with which torch computes."""


def provenance() -> Provenance:
    """This run's."""
    import torch  # only after the arguments were read

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    hardware = f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Provenance(commit(), hardware, str(torch.__version__), now, torch.get_num_threads())


def commit() -> str:
    """The commit of the source, with "+" behind it where files differ from it; "unknown" without git."""
    changed = "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + changed


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""  # an unpacked archive


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def heading(run: Provenance) -> str:
    """The heading above the lines of a run."""
    return f"{run.date}, commit {run.commit}, {run.hardware}, torch {run.torch_version} with {run.threads} threads"


def as_text(row: Row) -> str:
    """The row for people, columns aligned with those of other rows."""
    start = f"{row.name:15}{row.case:34}"
    if row.not_measured or not (row.ours and row.reference and row.ratio):
        return f"{start}not measured: {row.not_measured}"
    spread = f"({row.ratio.lowest:.2f}..{row.ratio.highest:.2f})"
    columns = [
        f"{_number(row.ours):>16}",
        f"{row.ratio.number:9.2f} {row.ratio_is} {spread:18}",
        f"as {_number(row.reference)}: {row.reference.what}",
    ]
    if row.floor:
        columns.append(f"{row.floor.ratio.number:.2f} x the floor ({row.floor.figure.what})")
    if row.targets:
        columns.append(f"{', '.join(map(_bound, row.targets))}: {'met' if row.met() else 'NOT MET'}")
    return start + "; ".join([" ".join(columns[:3]), *columns[3:]])


def _number(figure: Figure) -> str:
    digits = 0 if figure.number >= 1000 else 1 if figure.number >= 100 else 2
    return f"{figure.number:.{digits}f} {figure.unit}"


def _bound(target: Target) -> str:
    sign = ">=" if target.bound == "at_least" else "<="
    return f"{target.of} {sign} {target.number:g}"


def as_json(row: Row, run: Provenance) -> dict[str, Any]:
    """The row as plain values; docs/benchmarks.md says what each field means."""
    return {
        "name": row.name,
        "case": row.case,
        "sizes": dict(row.sizes),
        "ours": row.ours and {"number": row.ours.number, "unit": row.ours.unit},
        "reference": row.reference and asdict(row.reference),
        "ratio": row.ratio and row.ratio.number,
        "ratio_is": row.ratio_is,
        "spread": row.ratio and [row.ratio.lowest, row.ratio.highest],
        "floor": row.floor and asdict(row.floor.figure) | {"ratio": row.floor.ratio.number},
        "target": [asdict(target) for target in row.targets] or None,
        "met": row.met(),
        "not_measured": row.not_measured,
    } | asdict(run)


def write_json(path: Path, row: Row, run: Provenance) -> None:
    """Appends the row to a file, which is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(as_json(row, run), allow_nan=False) + "\n")
