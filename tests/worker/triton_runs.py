"""How tests of Triton's kernels run: where they may, and each file of comparisons in a process of its own.

Triton reads once in a process whether it interprets, so an interpreted comparison and one on a GPU need two.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="no package triton: it comes with torch's CUDA builds, or by pip install 'triton>=3.7' (1 GB)",
)


def compare(comparisons: Path, *, interpret: bool) -> None:
    """Runs the tests of a file, in Triton's interpreter or on a GPU, and fails with what they say."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", str(comparisons)]
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
