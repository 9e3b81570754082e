"""Runs Python that a page of the documentation shows, as a notebook would."""

import ast
import asyncio
import inspect
from typing import Any


def run_snippet(text: str, names: dict[str, Any]) -> None:
    """Runs a snippet with these names, to which it adds its own; `await` stands at the top where it likes."""
    code = compile(text, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, names)
    if inspect.iscoroutine(running):
        asyncio.run(running)
