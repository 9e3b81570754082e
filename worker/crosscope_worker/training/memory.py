"""How much memory a training takes, and what to lower when that is not there. Allocates nothing itself.

On the CPU a training that outgrows the machine is killed without a word, so it is asked before it starts.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from crosscope_proto.specs import CrosscoderSpec, TrainingSpec

_COPIES_OF_WEIGHTS = 4
"""Weights, gradients and Adam's two moments."""
_BYTES_A_CODE_ENTRY = 26
"""A pre-activation, its mark in a mask, and the places, latents and values of the half that is positive: at the first
step all of them are looked at. 878 MB were measured for 2 048 tokens and 16 384 latents."""


def needed(spec: CrosscoderSpec, training: TrainingSpec, both: int) -> dict[str, int]:
    """Bytes, by the field of the recipe that they grow with; `both` is the sum of the models' widths."""
    buffer_tokens = max(training.buffer_tokens, 2 * training.batch_size)
    return {
        "crosscoder.num_latents": _COPIES_OF_WEIGHTS * 4 * (2 * spec.num_latents * both + spec.num_latents + both),
        "training.batch_size": _BYTES_A_CODE_ENTRY * training.batch_size * spec.num_latents,
        "training.buffer_tokens": 4 * buffer_tokens * both,
    }


def shortage(parts: Mapping[str, int], values: Mapping[str, int], free: int) -> str | None:
    """A sentence if `parts` (of `needed`) do not fit into `free` bytes: what to lower, from which of `values` to what.

    Names the field that can make room with the smallest change, the buffer before the batch before the latents.
    """
    total = sum(parts.values())
    if total <= free:
        return None
    listed = ", ".join(f"{_size(size)} for {name} {values[name]}" for name, size in parts.items())
    problem = f"training needs about {_size(total)} of memory ({listed}), and {_size(free)} are free"
    for name in ("training.buffer_tokens", "training.batch_size"):
        room = free - (total - parts[name])
        if room > parts[name] // 8:
            return f"{problem}; lower {name} to {_round(values[name] * room // parts[name])}"
    fitting = _round(values["crosscoder.num_latents"] * free // (2 * total))
    return f"{problem}; lower crosscoder.num_latents to about {fitting}, or use a machine with more"


def ran_out(parts: Mapping[str, int], values: Mapping[str, int]) -> str:
    """A sentence for a training whose memory ran out after all: halve what takes most."""
    most = max(parts, key=lambda name: parts[name])
    listed = ", ".join(f"{_size(size)} for {name} {values[name]}" for name, size in parts.items())
    return (
        f"memory ran out; training takes about {_size(sum(parts.values()))} ({listed}) beside the models; "
        f"lower {most} to {max(1, values[most] // 2)}, or use a machine with more"
    )


def values_of(spec: CrosscoderSpec, training: TrainingSpec) -> dict[str, int]:
    """The fields that `needed` speaks of."""
    return {
        "crosscoder.num_latents": spec.num_latents,
        "training.batch_size": training.batch_size,
        "training.buffer_tokens": training.buffer_tokens,
    }


def free_bytes(device: torch.device) -> int | None:
    """Memory that a training on a device may still take; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [each for each in (_free_of_machine(), _free_of_container()) if each is not None]
    return min(known, default=None)


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _free_of_container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _round(number: int) -> int:
    """Down to two significant figures."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return max(1, number // unit * unit)
