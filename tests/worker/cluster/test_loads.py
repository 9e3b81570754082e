"""Ray is loaded in processes of the cluster and in the one that is connected to it, and nowhere else."""

import ast
from pathlib import Path

import crosscope_worker

ROOM = "crosscope_worker.cluster"
WITH_RAY = {f"{ROOM}.{name}" for name in ("connected", "mailbox", "parts", "ranks", "software")}


def loaded_by(path: Path) -> set[str]:
    """What importing a module imports."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{each.name}" for each in node.names)}
    return found


def test_only_modules_of_the_cluster_load_ray() -> None:
    folder = Path(crosscope_worker.__file__).parent
    loads = {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts): loaded_by(path)
        for path in folder.rglob("*.py")
    }
    assert {name for name, found in loads.items() if any(each.partition(".")[0] == "ray" for each in found)} == WITH_RAY
    assert {name for name, found in loads.items() if found & WITH_RAY} <= WITH_RAY
