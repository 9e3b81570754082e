"""What a task of a cluster measures a part with: the models are loaded once a process. Does not load Ray itself."""

from crosscope_worker.recipes.parts import Equipment, PartTask, equip, measure_part

_KEPT: dict[tuple[str, str], Equipment] = {}
"""What the last analysis in this process is measured with, by folder and device. Such a process belongs to one job."""


def measure_with_kept(task: PartTask, device: str) -> None:
    """`measure_part`, with what an earlier part of the same analysis was measured with in this process."""
    key = task.folder, device
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = equip(task, device)
    measure_part(task, device, equipment=_KEPT[key])
