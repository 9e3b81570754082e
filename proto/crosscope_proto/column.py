"""One column of a table on disk: its type, its meaning, and how it is shown and sent.

Knows no table; those are in columns.py.
"""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Column:
    """What a reader of a column needs to know about it."""

    name: str
    type: str
    """An Arrow type: uint8, uint16, uint32, uint64, float16, float32, float64, string, or list<one of these>."""
    meaning: str
    """One sentence for people."""
    _: KW_ONLY
    unit: str = ""
    """What the values count, for instance "tokens" or "share"; empty for pure numbers, texts and ids."""
    source: str = ""
    """The section of docs/math.md that defines it, for instance "math §4"."""
    low: float | None = None
    """Smallest possible value; None: no limit."""
    high: float | None = None
    """Largest possible value; None: no limit."""
    undefined: str = ""
    """Where it is NaN, for instance "where it never fired"; empty: nowhere."""
    absent: float | str | tuple[()] | None = None
    """The value, () for an empty list, for versions that were published before the column existed; None: every version
    has the column."""
    categories: tuple[str, ...] = ()
    """All possible texts of a column of texts, in the order of their numbers, which begin at 1; empty: any text."""
    axis: str = ""
    """For lists of one length: what an entry stands for, "role", "dataset", "bin" or "place"."""
    label: str = ""
    """Name of the column for people."""
    short: str = ""
    """Head of the column in a table. The app draws, orders and exports the scalar columns that have one."""
    is_log: bool = False
    """Whether an axis of this column is logarithmic."""
    is_floored: bool = False
    """Whether the largest value means "at least": it is -ln of a scale with a lower limit (math §5)."""
    error_of: str = ""
    """For a standard error: name of the estimate's column."""
    wire: str = ""
    """Field of crosscope.v1.Latent, and of the SDK's Latent, that holds the value: its path, joined by dots.

    An optional field is unset where the value is NaN. A list column whose path has a dot fills one field in each of a
    list of messages. A number without a field of its own has the path "more.NAME": an entry of a map, which is left
    out where the value is NaN.
    """

    @property
    def is_list(self) -> bool:
        """Whether the column holds a list in each row."""
        return self.type.startswith("list<")

    @property
    def is_scalar(self) -> bool:
        """Whether the column holds one value in each row."""
        return not self.is_list

    @property
    def is_text(self) -> bool:
        """Whether the column holds texts or lists of texts."""
        return "string" in self.type

    @property
    def path(self) -> tuple[str, ...]:
        """The path `wire` as a tuple; the column's own name if `wire` is empty."""
        return tuple((self.wire or self.name).split("."))


def with_error(column: Column) -> tuple[Column, Column]:
    """The column of an estimate, and the column of its standard error."""
    field = ".".join(column.path)
    error = Column(
        f"{column.name}_se",
        "float32",
        f"Standard error of the {column.label}, by the jackknife over shards of texts.",
        unit=column.unit,
        source="math §4",
        low=0.0,
        undefined="where one shard alone decides",
        absent=column.absent,
        label=f"standard error of the {column.label}",
        short=f"± {column.short.split()[-1]}" if column.short else "",
        error_of=column.name,
        wire=f"{field}.se",
    )
    return replace(column, wire=f"{field}.value"), error


def arrow_schema(columns: Iterable[Column]) -> "pyarrow.Schema":
    """The Arrow schema of a table with these columns. Needs pyarrow."""
    import pyarrow as pa

    scalars: dict[str, pa.DataType] = {
        "uint8": pa.uint8(),
        "uint16": pa.uint16(),
        "uint32": pa.uint32(),
        "uint64": pa.uint64(),
        "float16": pa.float16(),
        "float32": pa.float32(),
        "float64": pa.float64(),
        "string": pa.string(),
    }

    def arrow_type(column: Column) -> pa.DataType:
        return pa.list_(scalars[column.type[5:-1]]) if column.is_list else scalars[column.type]

    return pa.schema([pa.field(column.name, arrow_type(column)) for column in columns])


def markdown(columns: Iterable[Column]) -> str:
    """A table of columns as Markdown: name, meaning, unit, range and source."""
    heads = ("column", "meaning", "unit", "range", "source")
    rows = [heads, tuple("---" for _ in heads), *map(_cells, columns)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _cells(column: Column) -> tuple[str, ...]:
    meaning = column.meaning + (f" Undefined {column.undefined}." if column.undefined else "")
    return f"`{column.name}`", meaning.replace("|", "\\|"), column.unit or "–", _range(column), column.source or "–"


def _range(column: Column) -> str:
    if column.categories:
        return ", ".join(f"`{category}`" for category in column.categories)
    if column.low is None and column.high is None:
        return "–"
    if column.high is None:
        return f"≥ {column.low:g}"
    return f"{column.low:g} to {column.high:g}" if column.low is not None else f"≤ {column.high:g}"
