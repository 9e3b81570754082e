"""Executes the code cells of a notebook in this process, and stores what they show: `python examples/execute.py`.

The notebook needs a running stack (`make demo`, or `crosscope up`) with the demo's crosscoder. Needs no Jupyter: a cell
is Python without magics, and shows its prints and its last expression.
"""

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "diff.ipynb"


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its code cells, executed in order in one namespace.

    A cell that fails raises its own error, with a note that says which cell it was.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells: list[dict[str, Any]] = []
    for index, cell in enumerate(notebook["cells"]):
        executed = {**cell, "id": f"cell-{index}"}
        if cell["cell_type"] == "code":
            count = 1 + sum(each["cell_type"] == "code" for each in cells)
            try:
                outputs = _outputs("".join(cell["source"]), names, count)
            except Exception as error:
                error.add_note(f"in cell {index}:\n{''.join(cell['source'])}")
                raise
            executed |= {"execution_count": count, "outputs": outputs, "metadata": {}}
        cells.append(executed)
    return {**notebook, "cells": cells}


def _outputs(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)  # pyright: ignore[reportAttributeAccessIssue]
        shown = None if value is None or source.rstrip().endswith(";") else _shown(value)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if shown is not None:
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown})
    return outputs


def _shown(value: object) -> dict[str, list[str]]:
    """A value as text and, if it can be HTML, as that too; its text is then its `str`, which is made to be read."""
    page = html() if (html := getattr(value, "_repr_html_", None)) is not None else ""
    if not page:
        return {"text/plain": _lines(repr(value))}
    return {"text/plain": _lines(str(value)), "text/html": _lines(page)}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Executes the notebook and writes it back."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    executed = execute(json.loads(path.read_text("utf-8")))
    path.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
