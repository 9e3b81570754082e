"""Writes the blocking half of the SDK, crosscope/_sync, from the asynchronous one, crosscope/_async; `make sdk`.

The calls are described once, in _async. What blocks and what does not differ in keywords and names only, apart from
the few things in crosscope/_aio.py and crosscope/_blocking.py.
"""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "crosscope"
SOURCE, TARGET = PACKAGE / "_async", PACKAGE / "_sync"

RULES = [
    (r"\bAsyncGenerator\[(.+), None\]", r"Generator[\1, None, None]"),
    (r"\b(async|await) ", ""),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    (r"\b__a(iter|enter|exit)__", r"__\1__"),
    (r"\ba(next|closing|close)\b", r"\1"),
    (r"\b_async\b", "_sync"),
    (r"\b_aio\b", "_blocking"),
    (r"\bimport grpc\.aio\n", ""),
    (r"\bgrpc\.aio\.", "grpc."),
]
"""What is replaced by what, in this order."""


def blocking(text: str, name: str) -> str:
    """The text of a module of _sync, from that of the module of _async with the same name; formatted."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    text = f"# Written by client/generate.py from _async/{name}. Do not edit.\n{text}"
    # Rules that blocking code alone can break: names in order, `yield from`, no parentheses around what was awaited.
    for command in (
        ["check", "--select", "I,UP028,UP034", "--fix", "--unsafe-fixes", "--quiet"],
        ["format", "--quiet"],
    ):
        full = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(TARGET / name), "-"]
        text = subprocess.run(full, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> None:
    """Writes every module of _sync."""
    TARGET.mkdir(exist_ok=True)
    for source in sorted(SOURCE.glob("*.py")):
        (TARGET / source.name).write_text(blocking(source.read_text(), source.name))
    for stale in {path.name for path in TARGET.glob("*.py")} - {path.name for path in SOURCE.glob("*.py")}:
        (TARGET / stale).unlink()


if __name__ == "__main__":
    main()
