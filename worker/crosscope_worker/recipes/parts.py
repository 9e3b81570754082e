"""The parts in which the held-out texts of an analysis are measured, as tasks that run wherever both models can.

    checkpoints/parts/plan/    the texts, cut, and which part has which (analysis/plan.py)
    checkpoints/parts/003/     what was measured on part 3: there whole or not at all
    checkpoints/parts/weights/ the crosscoder, where parts are measured by other processes

Which texts a part has follows from the texts alone, so a task that is killed runs again alone, and a job that is
retried measures what is missing. These are parts of the texts, not the parts of a dictionary (column `part`), and not
the shards of the jackknife. Knows no formula.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from crosscope_proto.recipe import CrosscoderRecipe, PublishedRecipe, parse_recipe
from crosscope_proto.specs import Float32
from crosscope_worker.analysis.accumulators import Accumulators
from crosscope_worker.analysis.cutting import Cut
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.intake import intakes
from crosscope_worker.analysis.plan import Plan
from crosscope_worker.analysis.run import fill
from crosscope_worker.analysis.store import Store
from crosscope_worker.data.harvest import Harvest, harvest_windows
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.disk import first_folder, is_no_room, sha256
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.precision import float32_on, float32_products
from crosscope_worker.recipes.material import AnalysedRecipe, load_both
from crosscope_worker.ticks import Tick, idle_tick
from crosscope_worker.training.tensor_file import write_tensors
from crosscope_worker.work import Progress, Workspace, silent

PARTS = "parts"
"""Folder of all parts of an analysis, below the job's checkpoints."""
PLAN, WEIGHTS = "plan", "weights"
_SUMS, _ENTRIES, _STATE = "sums.safetensors", "entries", "state.json"


@dataclass(frozen=True)
class PartTask:
    """One part of the texts of one analysis: plain values, which can be pickled and written as JSON (`asdict`)."""

    recipe: dict[str, Any]
    """The job's recipe, as `recipe_dict` gives it."""
    home: str
    """The artefact folder."""
    folder: str
    """The folder of all parts of the analysis, below the job's; the result is a folder in it."""
    part: int
    num_parts: int
    float32: Float32
    """How float32 products are made."""
    data_roots: tuple[str, ...] = ()
    """Folders besides the home from which the pair may be read."""


class Runner(Protocol):
    """Measures parts by calling `measure_part(task, device, progress)` for each, on any machines that see the home."""

    def __call__(self, tasks: Sequence[PartTask], progress: Progress) -> None:
        """Returns when every task has its result. Parts may be measured in any order, side by side, and again.

        `progress(Stage.ANALYSE, share, message)` is called at least each second, `share` the share of the parts that
        are done. What it raises (Cancelled, LostClaim) ends all tasks and passes through; so does an error of a task,
        as the task raised it. A task that was killed is run again.
        """
        ...


class PartError(ValueError):
    """What was measured on a part cannot be read; the sentence says which file."""


@dataclass(frozen=True, eq=False)
class Equipment:
    """What a part is measured with."""

    recipe: AnalysedRecipe
    activations: PairActivations
    crosscoder: Crosscoder


def equip(task: PartTask, device: str = "cpu", progress: Progress = silent) -> Equipment:
    """Loads onto `device` what all parts of a task's analysis are measured with.

    Raises PairError, RootError and CrosscoderError (all ValueError), and whatever `progress` raises.
    """
    recipe = parse_recipe(json.dumps(task.recipe))
    assert isinstance(recipe, CrosscoderRecipe | PublishedRecipe)
    roots = tuple(map(Path, task.data_roots))
    workspace = Workspace(Path(task.home), Path(task.folder).parent.parent, lambda: None, device, roots)
    activations = PairActivations(load_both(recipe, workspace, progress), recipe.layer)
    return Equipment(recipe, activations, load_crosscoder(Path(task.folder) / WEIGHTS, device))


def measure_part(
    task: PartTask, device: str = "cpu", progress: Progress = silent, equipment: Equipment | None = None
) -> None:
    """Measures a part and writes its result; nothing is done where the result is there.

    `equipment`: what `equip` gave for another part of the same analysis; None: it is loaded onto `device`. Raises what
    `equip` raises, PlanError, HarvestError, AnalysisError (all ValueError), OSError, and whatever `progress` raises.
    """
    folder = Path(task.folder)
    if is_measured(folder, task.part):
        return
    equipment = equipment or equip(task, device, progress)
    plan = Plan.load(folder / PLAN, whole=False)
    with float32_products(float32_on(device, task.float32)):
        measure(equipment, plan, folder, task.part, progress)[0].close()


def result(folder: Path, part: int) -> Path:
    """The folder of what was measured on a part."""
    return folder / f"{part:03d}"


def is_measured(folder: Path, part: int) -> bool:
    """Whether the result of a part is there."""
    return result(folder, part).is_dir()


@torch.no_grad()
def measure(
    equipment: Equipment, plan: Plan, folder: Path, part: int, progress: Progress, tick: Tick = idle_tick
) -> tuple[Accumulators, NormFilter]:
    """What the pass over a part finds, which is written too, and the filter by norm with its counts.

    Raises as `measure_part`.
    """
    recipe, reference = equipment.recipe, plan.reference
    try:
        with first_folder(result(folder, part)) as partial:
            norms = NormFilter(recipe.tokens.max_norm_ratio, equipment.crosscoder.d_model, reference.bounds)
            store = Store(partial / _ENTRIES)
            found = Accumulators.of(equipment.crosscoder, recipe.analysis, len(recipe.data), reference.limits, store)
            try:
                windows = plan.read(folder / PLAN, part)
                harvested = harvest_cut(
                    equipment, windows, norms, plan.first_text(part), tick, is_part=len(plan.parts) > 1
                )
                taken = intakes(equipment.crosscoder, harvested, plan.first_token(part))
                fill(found, taken, recipe.analysis, progress, plan.first_token(part))
                _write(partial, found, norms)
            except BaseException:
                found.close()
                raise
    except OSError as error:
        if is_no_room(error):
            raise AnalysisError(
                f"no room in {folder} for what was measured on part {part + 1} of {len(plan.parts)} of the held-out "
                f"texts ({error}); free space there, or lower analysis.max_tokens"
            ) from error
        raise
    return found, norms


def harvest_cut(
    equipment: Equipment,
    windows: Iterable[tuple[list[Text], Cut]],
    norms: NormFilter,
    num_before: int,
    tick: Tick = idle_tick,
    *,
    is_part: bool = False,
) -> Iterator[tuple[Harvest, Cut]]:
    """Runs both models over windows of a plan. `num_before`: number of texts in the windows before; `is_part`: they are
    not all of the texts, so no token of them need be kept.
    """
    cuts: deque[Cut] = deque()

    def texts() -> Iterator[list[Text]]:
        for window, cut in windows:
            cuts.append(cut)
            yield window

    policy, activations = equipment.recipe.tokens, equipment.activations
    harvests = harvest_windows(
        texts(), activations, policy, norms=norms, num_before=num_before, tick=tick, is_part=is_part
    )
    for harvest in harvests:
        yield harvest, cuts.popleft()


def load_part(equipment: Equipment, folder: Path, part: int, tick: Tick = idle_tick) -> tuple[Accumulators, NormFilter]:
    """What was found and written by `measure`, compared with its hashes; `tick` hears of bytes. Raises PartError."""
    place, spec = result(folder, part), equipment.recipe.analysis
    try:
        state = json.loads((place / _STATE).read_text(encoding="utf-8"))
        for name, expected in state["files"].items():
            if sha256(place / name, tick) != expected:
                raise PartError(f"{place / name} is not what was written")
        norms = NormFilter(equipment.recipe.tokens.max_norm_ratio, equipment.crosscoder.d_model)
        norms.restore(state["norms"])
        tensors = load_file(place / _SUMS)
        num_datasets = len(equipment.recipe.data)
        found = Accumulators.saved(tensors, place / _ENTRIES, equipment.crosscoder, spec, num_datasets)
    except PartError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PartError(f"{place} cannot be read: {error}") from error
    return found, norms


def _write(folder: Path, found: Accumulators, norms: NormFilter) -> None:
    write_tensors(found.state(), folder / _SUMS)
    found.store.flush()
    files = {name: sha256(folder / name) for name in (_SUMS, _ENTRIES)}
    state = {"files": files, "norms": norms.state()}
    (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
