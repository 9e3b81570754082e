"""What a job worker says of its device, for plans: name and memory.

Loads no torch: of a GPU it asks the driver's own tool (device_use.py). Knows nothing about Redis.
"""

import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from crosscope_worker.device_use import ask_driver, num_gpus

_CONTAINER = Path("/sys/fs/cgroup/memory.max")

log = logging.getLogger(__name__)


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

    @property
    def devices(self) -> tuple[str, ...]:
        """Each of the devices in torch's words."""
        if self.num_devices == 1:
            return (self.device,)
        return tuple(f"{self.device}:{index}" for index in range(self.num_devices))


def one_device(said: str) -> str:
    """The device of jobs where the setting, which inference reads too, names several: the chat model's first.

    Of "auto", the first GPU; the CPU if no driver answers.
    """
    if said.strip() == "auto":
        try:
            ask_driver("cuda", "name")
        except (OSError, subprocess.SubprocessError, ValueError):
            return "cpu"
        return "cuda"
    return said.rpartition(",")[2].partition("+")[0].strip()


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
        *names, mebibytes = ask_driver(device, "name,memory.total")
        return Machine(device, ",".join(names), int(mebibytes) << 20, 1 if ":" in device else num_gpus())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("the memory of %s is not known for plans: %s", device, error)
        return Machine(device, device, None)
