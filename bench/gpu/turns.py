"""A plugin of pytest: each test waits for its turn on the device, so that no measured part runs beside it."""

from collections.abc import Generator

import pytest
import torch

from bench.gpu.rows import Run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Holds the device for the call of a test."""
    with Run(dry=not torch.cuda.is_available()).turn("beside"):
        return (yield)
