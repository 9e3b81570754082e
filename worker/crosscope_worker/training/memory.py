"""The memory that a training takes, and which field of the recipe to lower if it does not fit. Allocates nothing.

The system kills a training on the CPU that outgrows the machine, without a message. So its need is estimated before it
starts.
"""

from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from crosscope_proto.training_memory import COPY, ON_THE_WAY, SAMPLE, needed, values_of

__all__ = ["free_bytes", "needed", "ran_out", "room_beside", "shortage", "values_of"]

_CONTAINER = Path("/sys/fs/cgroup")


def shortage(parts: Mapping[str, int], values: Mapping[str, int], free: int, num_devices: int = 1) -> str | None:
    """A sentence if `parts` (from `needed`) do not fit into `free` bytes: which of `values` to lower, and to what.

    Both are of each of the devices that train together.

    Of the fields that can make room it names the first: buffer, batch, latents. The copy of a checkpoint is left out,
    because a training does without it (checkpoint_writer.py).
    """
    parts = {name: size for name, size in parts.items() if name != COPY}
    total = sum(parts.values())
    if total <= free:
        return None
    listed = ", ".join(f"{_size(size)} for {name} {values[name]}" for name, size in parts.items())
    where = f" on each of {num_devices} devices" if num_devices > 1 else ""
    problem = f"training needs about {_size(total)} of memory{where} ({listed}), and {_size(free)} are free"
    for name, least in (("training.buffer_tokens", 2 * values["training.batch_size"]), ("training.batch_size", 1)):
        room = free - (total - parts[name])
        fitting = _round(values[name] * room // parts[name])
        if room > parts[name] // 8 and fitting >= least:
            return f"{problem}; lower {name} to {fitting}"
    fitting = _round(values["crosscoder.num_latents"] * free // (2 * total))
    return f"{problem}; lower crosscoder.num_latents to about {fitting}, or use more devices (training.devices)"


def ran_out(parts: Mapping[str, int], values: Mapping[str, int]) -> str:
    """A sentence for a training that ran out of memory: halve the field that takes most."""
    most = max(parts.keys() - {SAMPLE, ON_THE_WAY, COPY}, key=lambda name: parts[name])
    if most == "training.buffer_tokens" and values[most] < 4 * values["training.batch_size"]:
        most = "training.batch_size"  # The buffer holds at least two batches.
    listed = ", ".join(f"{_size(size)} for {name} {values[name]}" for name, size in parts.items())
    return (
        f"memory ran out; training takes about {_size(sum(parts.values()))} ({listed}) beside the models; "
        f"lower {most} to {max(1, values[most] // 2)}, or use a machine with more"
    )


def free_bytes(device: torch.device) -> int:
    """Memory that a training on a device may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free, in_container = psutil.virtual_memory().available, _free_of_container()
    return free if in_container is None else min(free, in_container)


def room_beside(device: torch.device) -> int:
    """Memory that may be taken for good in the middle of a training: what is free less what a step still takes."""
    free = free_bytes(device)
    if device.type == "cuda":  # What torch holds is free for its tensors, up to the most that they have ever taken.
        free += torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    return max(0, free)


def _free_of_container() -> int | None:
    try:
        limit, used = ((_CONTAINER / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
        # The kernel counts cached files as used, but frees them on demand.
        files = int(stat["active_file"]) + int(stat["inactive_file"])
        return None if limit == "max" else max(0, int(limit) - int(used) + files)
    except (OSError, ValueError, KeyError):
        return None


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _round(number: int) -> int:
    """The number, rounded down to two significant figures."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return max(1, number // unit * unit)
