"""`make bench-gpu`: runs the sections on the device, and prints every row beside what it should reach.

Rows are written to a file one by one, so that what ends early loses only what it had not measured.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.gpu import table
from bench.gpu.schedule import Ended, run_all
from bench.gpu.sections import SECTIONS, Section
from bench.rows import commit

SECONDS = 300.0
DRY_SECONDS = 1800.0
MOST_LOGGED = 12_000_000
"""Characters of the log; the rest is counted."""


@dataclass(frozen=True)
class Machine:
    """Where and when a run was."""

    commit: str
    card: str
    """The card's name; "cpu" of a dry run."""
    driver: str
    torch: str
    triton: str
    transformers: str
    python: str
    date: str
    """UTC, ISO 8601."""

    @property
    def stem(self) -> str:
        """The date and the card, as the results' file is named."""
        name = re.search(r"\b[a-z]+\d+\w*", self.card.lower())
        return f"{self.date[:10]}-{name[0] if name else re.sub(r'[^a-z0-9]+', '-', self.card.lower())}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sections that `arguments`, by default the command line, name, and prints the table.

    Returns 0 if every section ran to its end and measured all it was to; else 1. A missed bound is no error.
    """
    options = _options(arguments)
    if options.list:
        for section in SECTIONS:
            print(f"{section.name:12}{section.what}")
        return 0
    if options.table:
        print("\n".join(table.table(table.read(options.table), _before())))
        return 0
    machine = _machine(options.dry, options.commit)
    folder: Path = options.out or (Path(tempfile.mkdtemp(prefix="bench-gpu-")) if options.dry else table.RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = _free(folder / f"{machine.stem}.jsonl")
    dry = "a dry run: tiny sizes on the CPU, the figures say nothing; " if options.dry else ""
    print(f"{dry}{', '.join(asdict(machine).values())}\n{path}", flush=True)
    sections = [each for each in SECTIONS if each.name in options.only]
    if options.dry:  # The limits are for a device that is there for minutes.
        sections = [replace(each, limit_s=options.seconds) for each in sections]
    with closing(Record(machine, path)) as record:
        run_all(sections, options.seconds, ["--dry"] if options.dry else [], record.line, record.log, record.end)
    print("\n".join(table.table(table.read(path), _before(), options.dry)), flush=True)
    return int(record.failed)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    every = [each.name for each in SECTIONS]
    parser = argparse.ArgumentParser(
        prog="make bench-gpu", description="Measure on one GPU, beside what it should reach."
    )
    parser.add_argument("--only", type=_names, default=every, metavar="NAME,…", help="some of the sections")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: shows that everything runs")
    help_ = f"for everything (default {SECONDS:.0f}, with --dry {DRY_SECONDS:.0f})"
    parser.add_argument("--seconds", type=float, help=help_)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the results go (default bench/results)")
    parser.add_argument("--commit", help="of the source, where git is not there to tell")
    parser.add_argument("--list", action="store_true", help="list the sections, and end")
    parser.add_argument("--table", type=Path, metavar="FILE", help="run nothing: the table of these results")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (DRY_SECONDS if options.dry else SECONDS)
    if options.seconds < 20:
        parser.error(f"--seconds is {options.seconds:g}; give at least 20")
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    known = [each.name for each in SECTIONS]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such section; there are {', '.join(known)}")
    return names


class Record:
    """The files of a run: its results and its log."""

    def __init__(self, machine: Machine, path: Path) -> None:
        """Creates the results' file; the log lies beside it."""
        self.path, self.failed = path, False
        self._machine, self._lock = asdict(machine), threading.Lock()
        self._results = path.open("w", encoding="utf-8")
        self._log = path.with_suffix(".log").open("w", encoding="utf-8")
        self._logged, self._rows = 0, Counter[str]()
        self._last: dict[str, str] = {}

    def close(self) -> None:
        """Closes both files."""
        self._results.close()
        self._log.close()

    def line(self, section: Section, text: str) -> None:
        """Takes a line of a section's standard output; what is no row goes to the log."""
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("row"), str) and ("error" in row or "value" in row):
            self._rows[section.name] += 1
            self._write(row)
        else:
            self.log(section, text)

    def log(self, section: Section, text: str) -> None:
        """Takes a line of a section's standard error."""
        with self._lock:
            self._last[section.name] = text.strip() or self._last.get(section.name, "")
            if self._logged < MOST_LOGGED:
                self._logged += self._log.write(f"{section.name}: {text.rstrip()}\n")
                self._log.flush()

    def end(self, ended: Ended) -> None:
        """Takes how a section ended."""
        name = ended.section.name
        why = ended.why or (None if self._rows[name] else "no row came of it")
        if why and self._last.get(name):
            why += f"; last in the log: {self._last[name][:300]}"
        if why:
            self._write({"row": name, "error": why})
        print(
            f"{name:12}from {ended.began_s:3.0f} s, {ended.took_s:3.0f} s: {self._rows[name]} rows  {why or ''}",
            flush=True,
        )

    def _write(self, row: dict[str, Any]) -> None:
        with self._lock:
            self.failed |= "error" in row
            self._results.write(json.dumps(row | self._machine) + "\n")
            self._results.flush()


def _machine(dry: bool, given: str | None) -> Machine:
    card, driver = ("cpu", "none") if dry else _card()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    torch, triton, transformers = (_version(name) for name in ("torch", "triton", "transformers"))
    return Machine(given or commit(), card, driver, torch, triton, transformers, platform.python_version(), now)


def _card() -> tuple[str, str]:
    """Name and driver of the first device."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"nvidia-smi tells of no device ({error}); ARGS=--dry runs the sections at tiny sizes on the CPU")
    name, _, driver = told.splitlines()[0].partition(",")
    return name.strip(), driver.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _before() -> table.Results:
    return table.read(table.BEFORE) if table.BEFORE.is_file() else table.Results({}, {})


def _free(path: Path) -> Path:
    """The path, or with a number behind its name where a file is there already."""
    number = 2
    free = path
    while free.exists():
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
