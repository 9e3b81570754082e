"""The runbook of docs/operations.md, followed word by word: only its ports are others, and the person's folder."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_ports import free_port
from fixtures_waiting import PATIENCE_S

from .conftest import READY_WITHIN_S, ROOT

pytestmark = pytest.mark.slow

SECTION = "A term, step by step"
PORTS = ("50051", "8501", "9101")


def blocks() -> Iterator[str]:
    """The commands of the runbook, block by block."""
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    (section,) = re.findall(rf"^## {SECTION}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


class Terminals:
    """A terminal for `crosscope up`, and one for everything else."""

    def __init__(self, person: Path) -> None:
        self._person = person
        self._ports = {port: str(free_port()) for port in PORTS}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CROSSCOPE_")}
        self._environment = kept | {
            "HOME": str(person),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CROSSCOPE_ADDRESS": f"127.0.0.1:{self._ports['50051']}",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._exports: list[str] = []
        self._up: subprocess.Popen[str] | None = None

    def type(self, block: str) -> str:
        """What a block prints. One that begins with `crosscope up` goes on in its terminal, and prints nothing here."""
        block = re.sub("|".join(PORTS), lambda found: self._ports[found[0]], block)
        # A person without --port asks the default one; here it is another.
        block = re.sub(
            r"^(crosscope doctor .*)$", rf"\1 --port {free_port()} --app-port {free_port()}", block, flags=re.M
        )
        if block.startswith("crosscope up"):
            self._start(block)
            return ""
        script = "\n".join(["set -e", *self._exports, block])
        self._exports += re.findall(r"^export .*$", block, re.MULTILINE)
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _start(self, block: str) -> None:
        self.stop()
        said = self._person / "up.txt"
        with said.open("w") as file:
            self._up = subprocess.Popen(
                ["bash", "-c", f"exec {block}"], cwd=ROOT, env=self._environment, stdout=file, stderr=file, text=True
            )
        ends_at = time.monotonic() + READY_WITHIN_S
        while "Ready" not in said.read_text("utf-8"):
            assert self._up.poll() is None, said.read_text("utf-8")
            assert time.monotonic() < ends_at, said.read_text("utf-8")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ctrl-C in the terminal of `crosscope up`."""
        if self._up is not None:
            self._up.send_signal(signal.SIGINT)
            self._up.wait(PATIENCE_S)
            self._up = None


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    opened = Terminals(tmp_path)
    yield opened
    opened.stop()


@pytest.mark.timeout(400)
def test_every_block_does_what_it_says(terminals: Terminals, tmp_path: Path) -> None:
    said = [terminals.type(block) for block in blocks()]
    assert len(said) == 13
    everything = "\n".join(said)
    assert "crosscope_disk_free_bytes" in everything
    started, revoked, restored = said[2], said[6], said[-1]
    assert "published" in started or "succeeded" in started
    assert (tmp_path / "crosscope/home/pairs/check/pair.json").is_file()
    assert (tmp_path / "crosscope/restored/pairs/check/pair.json").is_file()
    assert "revoked" in revoked
    assert "check" in restored
    assert "ann" in restored
