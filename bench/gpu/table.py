"""The table of a run: each row beside what it should reach and what an earlier run measured.

Reads lines of results; does not know how they came about.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.reach import REACH, REACH_OF, Reach

RESULTS = Path(__file__).parents[1] / "results"
BEFORE = RESULTS / "2026-11-26-h100.jsonl"
"""The first run on a GPU, before anything was changed for one."""
MOST_OTHERS = 120
"""Rows without a bound that are printed; more are counted."""
_WIDE = 46


@dataclass(frozen=True)
class Results:
    """The lines of one run."""

    rows: Mapping[str, Mapping[str, Any]]
    """Measured rows by name; of two lines of a name the later."""
    errors: Mapping[str, str]
    """What was not measured, and why, by the name of a row, of a part, or of a section."""

    def why_not(self, row: str) -> str:
        """Why a row has not been measured: by its own name, else by what it is part of, else by its section."""
        parts = row.split(".")
        for length in range(len(parts), 0, -1):
            if said := self.errors.get(".".join(parts[:length])):
                return said
        inside = [f"{name}: {said}" for name, said in self.errors.items() if name.startswith(f"{parts[0]}.")]
        return inside[0] if inside else "no line of it came"


def read(path: Path) -> Results:
    """The results in a file of JSON lines. Raises OSError, and ValueError for a line that is no row."""
    rows: dict[str, Mapping[str, Any]] = {}
    errors: dict[str, str] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = json.loads(text)
        if not isinstance(line, dict) or "row" not in line:
            raise ValueError(f"{path}:{number} is no row of `make bench-gpu`")
        if "error" in line:
            errors[line["row"]] = line["error"]
        else:
            rows[line["row"]] = line
    return Results(rows, errors)


def table(found: Results, before: Results, dry: bool = False) -> list[str]:
    """Lines of text: rows without a bound, then what was not measured, then all rows with a bound.

    Of a dry run nothing is said to be met.
    """
    heading = f"{'':{_WIDE}}{'measured':>13}{'before':>13}"
    others = [name for name in found.rows if name not in REACH_OF]
    lines = [heading] + [_other(name, found, before) for name in others[:MOST_OTHERS]]
    if len(others) > MOST_OTHERS:
        lines.append(f"({len(others) - MOST_OTHERS} more rows are in the file)")
    if found.errors:
        lines += ["", "not measured"] + [f"  {name}: {said[:170]}" for name, said in list(found.errors.items())[:30]]
    lines += ["", f"{heading}  reach"]
    return lines + [_bounded(each, found, before, dry) for each in REACH]


def _bounded(each: Reach, found: Results, before: Results, dry: bool) -> str:
    row = found.rows.get(each.row)
    if row is None:
        measured, verdict = "not measured", f": {found.why_not(each.row)[:110]}"
    else:
        measured = _number(row)
        verdict = "" if dry else ": met" if each.met(row["value"]) else ": NOT MET"
    return f"{each.what:{_WIDE}}{measured:>13}{_number(before.rows.get(each.row)):>13}  {each}{verdict}"


def _other(name: str, found: Results, before: Results) -> str:
    row = found.rows[name]
    detail = " ".join(f"{key}={json.dumps(value)}" for key, value in row.get("detail", {}).items())
    return f"{name:{_WIDE}}{_number(row):>13}{_number(before.rows.get(name)):>13} {row['unit']}  {detail[:90]}".rstrip()


def _number(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    value = row["value"]
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
