"""What a measurement under stress prints: one JSON object a line, which `make stress` collects into its table."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

MINUTES = "CROSSCOPE_STRESS_MINUTES"
"""Environment variable: how long each file here may measure."""


@dataclass(frozen=True)
class Row:
    """One figure beside what it should reach."""

    row: str
    value: str | float
    unit: str
    reach: str
    ok: bool


def minutes(default: float = 5.0) -> float:
    """How long a file may measure, as `make stress ARGS="--minutes 1"` says."""
    return float(os.environ.get(MINUTES) or default)


def say(row: str, value: str | float, unit: str, reach: str, ok: bool) -> None:
    """Prints a row."""
    print(json.dumps(asdict(Row(row, value, unit, reach, ok)), ensure_ascii=False), flush=True)


def read(line: str) -> Row | None:
    """The row in a line of output; None for any other line."""
    try:
        entry = json.loads(line)
        return Row(**entry)
    except (ValueError, TypeError):
        return None


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| | value | unit | reach | |", "|---|---|---|---|---|"]
    for each in rows:
        value = f"{each.value:.4g}" if isinstance(each.value, float) else str(each.value)
        lines.append(f"| {each.row} | {value} | {each.unit} | {each.reach} | {'ok' if each.ok else 'MISSED'} |")
    return "\n".join(lines)
