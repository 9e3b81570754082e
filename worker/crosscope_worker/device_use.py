"""How much of each device is in use, by all processes. Loads no torch: of GPUs it asks the driver's own tool.

torch.cuda.utilization would need a package of NVIDIA's and a context on the device; nvidia-smi comes with the driver.
"""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

FRESH_S = 1.0
"""An answer of the driver that is no older is taken again."""
_ASK_S = 10.0
_FIELDS = "memory.used,memory.total,utilization.gpu"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Use:
    """How much of a device is in use; None where that is not known."""

    device: str
    """In torch's words: "cpu", "cuda:1"."""
    used_bytes: int | None = None
    limit_bytes: int | None = None
    """All of its memory."""
    busy: float | None = None
    """Share of the last second in which it worked, 0 to 1."""


class DeviceUse:
    """The use of some devices. Any thread may ask."""

    def __init__(self, devices: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """`devices` in torch's words."""
        self._devices, self._clock = tuple(devices), clock
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._found = tuple(map(Use, self._devices))
        self._asking: threading.Thread | None = None

    def now(self) -> tuple[Use, ...]:
        """The use of each device, a second old at most. Waits for the driver, up to ten seconds."""
        with self._lock:
            if self._clock() - self._asked_at > FRESH_S:
                self._found = tuple(map(use_of, self._devices))
                self._asked_at = self._clock()
            return self._found

    def last(self) -> tuple[Use, ...]:
        """The use of each device when the driver last answered; asks it again meanwhile. Never waits for it."""
        if not any(device.startswith("cuda") for device in self._devices):
            return self.now()
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self.now, name="device use", daemon=True)
            self._asking.start()
        return self._found


class UseCollector(Collector):
    """The use of devices as metrics, a series for each device."""

    def __init__(self, use: DeviceUse, *, with_memory: bool, registry: CollectorRegistry) -> None:
        """`with_memory` False: the memory is shown by who knows what of it is this process's."""
        self._use, self._with_memory = use, with_memory
        registry.register(self)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metrics without values, so that nobody is asked when they are registered."""
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics of now."""
        utilisation, *memory = families = self._families()
        for use in self._use.now():
            utilisation.add_metric([use.device], _or_nan(use.busy))
            for family, value in zip(memory, (use.used_bytes, use.limit_bytes), strict=False):
                family.add_metric([use.device], _or_nan(value))
        yield from families

    def _families(self) -> list[GaugeMetricFamily]:
        meanings = {"crosscope_device_utilisation_ratio": "Share of time a device works, by all processes"}
        if self._with_memory:
            meanings["crosscope_device_memory_allocated_bytes"] = "Memory of a device that is in use"
            meanings["crosscope_device_memory_limit_bytes"] = "All memory of a device"
        return [GaugeMetricFamily(name, meaning, labels=["device"]) for name, meaning in meanings.items()]


def use_of(device: str) -> Use:
    """How much of a device is in use now."""
    if device == "cpu":
        whole = psutil.virtual_memory()
        return Use(device, whole.total - whole.available, whole.total, psutil.cpu_percent() / 100)
    if not device.startswith("cuda"):
        return Use(device)
    try:
        used, limit, percent = (_number(each) for each in ask_driver(device, _FIELDS))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.debug("the use of %s is not known: %s", device, error)
        return Use(device)
    mebibyte = 1 << 20
    return Use(
        device,
        None if used is None else used * mebibyte,
        None if limit is None else limit * mebibyte,
        None if percent is None else percent / 100,
    )


def ask_driver(device: str, fields: str) -> list[str]:
    """What nvidia-smi says of a GPU. Raises OSError, subprocess.SubprocessError or ValueError."""
    index = int(number) if (number := device.partition(":")[2]).isdecimal() else 0
    seen = visible()
    which = seen[index] if index < len(seen) else str(index)
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", which]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_ASK_S).stdout
    if not (lines := said.strip().splitlines()):
        raise ValueError("nvidia-smi says nothing")
    return [part.strip() for part in lines[0].split(",")]


def num_gpus() -> int:
    """Number of GPUs that torch sees. Raises OSError or subprocess.SubprocessError."""
    if seen := visible():
        return len(seen)
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_ASK_S).stdout
    return max(1, len(said.split()))


def visible() -> list[str]:
    """The GPUs that this process may see, by their index or id for the driver; empty: all."""
    return [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]


def _number(said: str) -> int | None:
    """A number of the driver; None where the card does not tell, as for a part of a divided one ("[N/A]")."""
    return int(said) if said.isdecimal() else None


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
