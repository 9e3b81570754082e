"""What a job worker says of its device, for plans: name and memory.

Loads no torch: of a GPU it asks the driver's own tool. Knows nothing about Redis.
"""

import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

_CONTAINER = Path("/sys/fs/cgroup/memory.max")
_ASK_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Use:
    """How much of a device is in use, by all processes; None where that is not known."""

    memory_bytes: int | None
    busy: float | None
    """Share of the last second in which the device worked, 0 to 1."""


@dataclass(frozen=True)
class Machine:
    """The device on which a worker's jobs run."""

    device: str
    """In torch's words: "cpu", "cuda:1"."""
    name: str
    """For people: "NVIDIA H100 80GB HBM3", "2 CPU cores"."""
    memory_bytes: int | None
    """All of its memory; None if unknown."""
    num_devices: int = 1
    """Number of such devices: all of the machine's for "cuda", one for "cuda:1"."""

    def free_bytes(self) -> int | None:
        """What of the memory is free now; None if unknown, as for a GPU."""
        if self.device != "cpu":
            return None
        free = psutil.virtual_memory().available
        return free if self.memory_bytes is None else min(free, self.memory_bytes)

    def use(self) -> Use:
        """How much of the device is in use now."""
        if self.device == "cpu":
            whole = psutil.virtual_memory()
            return Use(whole.total - whole.available, psutil.cpu_percent() / 100)
        if not self.device.startswith("cuda"):
            return Use(None, None)
        try:
            mebibytes, percent = (int(each) for each in _ask_driver(self.device, "memory.used,utilization.gpu"))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            log.debug("the use of %s is not known: %s", self.device, error)
            return Use(None, None)
        return Use(mebibytes << 20, percent / 100)


def find_machine(device: str) -> Machine:
    """The machine behind a torch device."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        cores = len(os.sched_getaffinity(0))
        return Machine("cpu", f"{cores} CPU core{'s' * (cores != 1)}", _memory())
    if kind == "cuda":
        return _gpu(device)
    return Machine(device, device, None)


def _memory() -> int:
    """Memory of this machine, or of this container if that is less."""
    whole = psutil.virtual_memory().total
    try:
        limit = _CONTAINER.read_text().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdecimal() else whole


def _gpu(device: str) -> Machine:
    """A GPU as nvidia-smi describes it; of unknown memory if that does not answer."""
    try:
        *names, mebibytes = _ask_driver(device, "name,memory.total")
        return Machine(device, ",".join(names), int(mebibytes) << 20, _num_gpus(device))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("the memory of %s is not known for plans: %s", device, error)
        return Machine(device, device, None)


def _num_gpus(device: str) -> int:
    """Number of GPUs that torch sees where it is told `device`. Raises as `_ask_driver`."""
    if ":" in device:
        return 1
    if visible := [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]:
        return len(visible)
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_ASK_S).stdout
    return max(1, len(said.split()))


def _ask_driver(device: str, fields: str) -> list[str]:
    """What nvidia-smi says of a GPU. Raises OSError, subprocess.SubprocessError or ValueError."""
    index = int(number) if (number := device.partition(":")[2]).isdecimal() else 0
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    which = visible[index] if index < len(visible) else str(index)
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", which]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_ASK_S).stdout
    if not (lines := said.strip().splitlines()):
        raise ValueError("nvidia-smi says nothing")
    return [part.strip() for part in lines[0].split(",")]
