"""Exported words as files: JSON, and CSV for spreadsheets. Both hold everything, and are read back exactly.

A row is a dictionary: `weights`, and either `list`, a list's name, or `latent` with the things that are said of it.
Each of `label`, `automatic_label`, `note` and `star` holds `text`, `author`, `written_at` and, of automatic labels,
`scores`; `lists` holds the latent's position in each list.

In CSV each of these has a column of its own (COLUMNS). Spreadsheets run a cell that begins with = + - or @ as a
formula. Such a text gets an apostrophe in front when it is written, and loses it when it is read.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscope._errors import InvalidInput

WHATS = ("label", "automatic_label", "note", "star")
COLUMNS = (
    "weights",
    "latent",
    *(f"{what}{part}" for what in WHATS for part in ("", "_author", "_at")),
    "automatic_label_scores",
    "lists",
)
_FORMAT = "crosscope annotations"
_VERSION = 1
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What a spreadsheet might run, or what was once made safe."""
_YES = "1"


def write(path: Path, rows: Sequence[Mapping[str, Any]], crosscoder: str) -> None:
    """Writes rows as JSON or CSV, by the name's ending. Raises InvalidInput for another ending, or OSError."""
    path.write_text(text_of(path, rows, crosscoder), "utf-8", newline="")


def text_of(path: Path, rows: Sequence[Mapping[str, Any]], crosscoder: str) -> str:
    """The text of a file of this name with rows. Raises InvalidInput for an ending that is not .json or .csv."""
    if _is_json(path):
        document = {"format": _FORMAT, "version": _VERSION, "crosscoder": crosscoder, "rows": list(rows)}
        return json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: safe(cell) for name, cell in flat(row).items()} for row in rows)
    return out.getvalue()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON or CSV file. Raises InvalidInput with the place, or OSError."""
    _is_json(path)
    return parse(path, path.read_bytes())


def parse(path: Path, data: bytes) -> list[dict[str, Any]]:
    """The rows in the bytes of a file of this name. Raises InvalidInput with the place."""
    is_json = _is_json(path)
    try:
        text = data.decode("utf-8-sig")
        return _from_json(text) if is_json else _from_csv(text)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput.of("file", f"{path} cannot be read: {error}; export a file to see how one looks") from error


def of_frame(frame: Any) -> list[dict[str, Any]]:
    """The rows of a data frame with some of COLUMNS, `latent` among them. Raises InvalidInput."""
    if "latent" not in frame.columns:
        frame = frame.reset_index()
    cells = frame.astype(object).where(frame.notna(), "").to_dict("records")
    return _nested_rows([{str(name): _cell(value) for name, value in row.items()} for row in cells])


def flat(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as cells under COLUMNS."""
    cells = dict.fromkeys(COLUMNS, "") | {"weights": row.get("weights", ""), "latent": str(row.get("latent", ""))}
    for what in WHATS:
        if (said := row.get(what)) is not None:
            cells[what] = _YES if what == "star" else said["text"]
            cells[f"{what}_author"], cells[f"{what}_at"] = said["author"], repr(float(said["written_at"]))
            if scores := said.get("scores"):
                cells[f"{what}_scores"] = json.dumps(scores)
    lists = {row["list"]: None} if "list" in row else row.get("lists")
    if lists:
        cells["lists"] = json.dumps(lists, ensure_ascii=False)
    return cells


def _from_json(text: str) -> list[dict[str, Any]]:
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise InvalidInput.of("file", f'it is no export of words: "format" is not "{_FORMAT}"')
    if document.get("version") != _VERSION:
        raise InvalidInput.of("file", f'its "version" is {document.get("version")!r}, but this client reads {_VERSION}')
    rows = document["rows"]
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or ("list" in row) == ("latent" in row):
            raise InvalidInput.of(f"rows[{number}]", "must be an object with either latent or list")
    return rows


def _from_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    heads = reader.fieldnames or []
    if "latent" not in heads:
        raise InvalidInput.of("file", f"a CSV file needs a column latent, and some of {', '.join(COLUMNS)}")
    return _nested_rows([{name: _unsafe(cell or "") for name, cell in row.items() if name} for row in reader])


def _nested_rows(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    found = []
    for number, cells in enumerate(rows):
        try:
            found += _nested(cells)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput.of(f"rows[{number}]", f"is no row of an export: {error}") from error
    return found


def _nested(cells: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows that a line says: a latent, or lists without latents."""
    lists = json.loads(cells.get("lists") or "{}")
    weights = cells.get("weights", "")
    if not cells["latent"]:
        return [{"weights": weights, "list": name} for name in lists]
    row: dict[str, Any] = {"weights": weights, "latent": int(cells["latent"])}
    for what in WHATS:
        if text := cells.get(what, ""):
            said = {
                "text": "" if what == "star" else text,
                "author": cells.get(f"{what}_author", ""),
                "written_at": float(cells.get(f"{what}_at") or 0),
            }
            scores = json.loads(cells.get(f"{what}_scores") or "{}")
            row[what] = said | ({"scores": scores} if scores else {})
    return [row | ({"lists": lists} if lists else {})]


def safe(cell: str) -> str:
    """A cell of CSV that no spreadsheet runs as a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unsafe(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _is_json(path: Path) -> bool:
    if path.suffix.lower() not in (".json", ".csv"):
        raise InvalidInput.of("file", f"{path.name!r} must end in .json or .csv")
    return path.suffix.lower() == ".json"
