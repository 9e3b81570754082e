"""What docs/operations.md says of metrics, and what processes expose."""

from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
LIBRARY = ("process_",)
"""Beginnings of the names that the client library brings."""


@dataclass(frozen=True)
class Described:
    kind: str
    labels: frozenset[str]
    processes: str


def documented() -> dict[str, Described]:
    """Metric by its name, as the table has it."""
    section = PAGE.read_text().partition("## Metrics\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    return {
        name.strip("`"): Described(kind, frozenset(filter(None, labels.split(", "))), processes)
        for name, kind, labels, processes, _ in rows
    }


def exposed(page: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Kind and labels of every metric on a page of Prometheus; without what the client library brings."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if family.name.endswith("_created") or name.startswith(LIBRARY):
            continue
        found[name] = family.type, frozenset(label for each in family.samples for label in each.labels) - {"le"}
    return found
