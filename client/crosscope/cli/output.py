"""Results to stdout, errors to stderr: JSON, tables for a terminal, plain text for a pipe."""

import dataclasses
import enum
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from crosscope._tables import aligned, lines

if TYPE_CHECKING:
    from rich.console import Console

    from crosscope import CrosscoderInfo

_LEAST_COLUMNS = 16
"""The last column of a table is folded to no less than this width; below it, the column is left out."""
_SERVER_ERROR, _WRONG_INPUT, _UNAVAILABLE, _JOB_FAILED = 1, 2, 3, 4


def to_plain(value: Any) -> Any:
    """A result in the types of JSON: NaN as null, enums by name, arrays as lists; without links between results."""
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value, str) else value.name.lower()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_plain(value._asdict())  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "source"}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [to_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: Any) -> None:
    """Prints one JSON document on one line."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(to_plain(value), ensure_ascii=not is_utf8, allow_nan=False), flush=True)


def console() -> "Console":
    """The console on stdout; without colours if NO_COLOR is set or stdout is no terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], rest: int = 0) -> None:
    """Prints rows under headers: fitted to a terminal, uncut in a pipe. `rest` is the number of rows left out."""
    if sys.stdout.isatty():
        _print_fitted(headers, list(rows))
    else:
        print_text(aligned(headers, rows))
    if rest > 0:
        click.echo(f"… {rest} more; --limit shows more", err=True)


def _print_fitted(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints as many columns as the terminal has room for, the last one folded, and names the others on stderr."""
    from rich.table import Table
    from rich.text import Text

    terminal = console()
    num_shown = _num_fitting(headers, rows, terminal.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers[:num_shown]):
        table.add_column(header, overflow="fold", no_wrap=index < num_shown - 1)
    for row in rows:
        table.add_row(*map(Text, row[:num_shown]))
    terminal.print(table)
    if num_shown < len(headers):
        click.echo(f"… no room for {', '.join(headers[num_shown:])}; widen the terminal, or use --json", err=True)


def _num_fitting(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(headers, *rows, strict=True)]
    for num in range(len(widths), 1, -1):
        if sum(widths[: num - 1]) + 2 * (num - 1) + min(widths[num - 1], _LEAST_COLUMNS) <= width:
            return num
    return 1


def print_text(text: str) -> None:
    """Prints a text; characters that the terminal's encoding lacks become escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


_SHADES = ((0.6, "bold red3"), (0.3, "dark_orange3"), (0.1, "dark_goldenrod"))
"""Colours by the least share that they stand for; readable on light and on dark."""


def shade(share: float) -> str:
    """The style of a token whose value is this share of the largest."""
    return next((style for least, style in _SHADES if share >= least), "")


def print_shaded(tokens: Iterable[tuple[str, float]]) -> None:
    """Prints tokens on a terminal, each coloured by its share of the largest value; prints nothing in a pipe."""
    if not sys.stdout.isatty():
        return
    from rich.text import Text

    terminal = console()
    terminal.print(Text.assemble(*((lines(piece), shade(share)) for piece, share in tokens)))
    terminal.print()


def print_broken(infos: Iterable["CrosscoderInfo"]) -> None:
    """Prints a line on stderr for every crosscoder that the server cannot read."""
    for info in infos:
        if info.broken:
            click.echo(f"{info.name} is broken: {info.broken}".encode("utf-8", "backslashreplace").decode(), err=True)


def report_usage(error: click.ClickException, *, as_json: bool) -> None:
    """Prints an error of the command line on stderr."""
    if as_json:
        document = {"error": type(error).__name__, "message": error.format_message(), "violations": []}
        click.echo(json.dumps(document), err=True)
    else:
        error.show()


def report_error(error: Exception, *, as_json: bool) -> int | None:
    """Prints an expected error on stderr and returns its exit code; returns None for a bug, and prints nothing."""
    from crosscope import (
        Busy,
        CrosscopeError,
        DeadlineExceeded,
        InvalidInput,
        JobCancelled,
        JobFailed,
        ServerError,
        Unavailable,
    )

    if not isinstance(error, CrosscopeError):
        return None
    if as_json:
        violations = [v._asdict() for v in error.violations] if isinstance(error, InvalidInput) else []
        document = {"error": type(error).__name__, "message": str(error), "violations": violations}
        click.echo(json.dumps(document | ({"request_id": asked} if (asked := error.request_id) else {})), err=True)
    else:
        # What the server's operator must look up has its id; what the caller can mend needs none.
        is_theirs = isinstance(error, ServerError | DeadlineExceeded | Busy) and error.request_id
        hint = f" (request {error.request_id})" if is_theirs else ""
        click.echo(f"error: {error}{hint}".encode("utf-8", "backslashreplace").decode(), err=True)
    if isinstance(error, InvalidInput):
        return _WRONG_INPUT
    if isinstance(error, Unavailable):
        return _UNAVAILABLE
    return _JOB_FAILED if isinstance(error, JobFailed | JobCancelled) else _SERVER_ERROR
