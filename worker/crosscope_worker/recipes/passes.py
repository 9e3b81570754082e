"""The pass of an analysis, in a job's process: its plan, its parts, and what they merge to.

Parts are measured here, one after the other, with the models at hand, unless a Runner measures them elsewhere. What an
earlier attempt of the job has measured is read. Knows no formula.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch

from crosscope_proto.recipe import recipe_dict
from crosscope_proto.stages import Stage
from crosscope_worker.analysis.accumulators import Accumulators
from crosscope_worker.analysis.cutting import Cutter
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.intake import block_tokens, intakes
from crosscope_worker.analysis.plan import Plan, PlanError, Planned, Reference, plan_of, write_texts
from crosscope_worker.analysis.quality import outlier_limits
from crosscope_worker.data.harvest import windows_of
from crosscope_worker.data.tally import Counts, as_state, from_state
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import StoredKeep
from crosscope_worker.disk import PARTIAL, is_no_room, whole_folder
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.phases import Following
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.parts import (
    PARTS,
    PLAN,
    WEIGHTS,
    Equipment,
    PartError,
    PartTask,
    Runner,
    harvest_cut,
    is_measured,
    load_part,
    measure,
    result,
)

_FORMAT = 1
"""Of what is kept; another one is measured again."""
_ROWS = 64
"""Rows of a matrix by which weights are recognised."""


def pass_over(
    material: Material,
    crosscoder: Crosscoder,
    norms: NormFilter,
    following: Following,
    runner: Runner | None,
    save_weights: Callable[[Path], None],
) -> tuple[Accumulators, Sequence[Counts]]:
    """What a crosscoder's pass over the held-out texts finds, and what became of the texts of each data set.

    `norms` gets the counts of the filter, and its bounds where it has none. `save_weights` writes the crosscoder to a
    folder, for a runner. Raises DataError, HarvestError, AnalysisError (all ValueError), OSError, and whatever
    `following` and the runner raise.
    """
    folder = material.workspace.checkpoints / PARTS
    equipment = Equipment(material.recipe, material.activations, crosscoder)
    plan = _plan(material, equipment, folder, norms, following)
    parts = range(len(plan.parts))
    missing = [part for part in parts if not is_measured(folder, part)]
    if runner is not None and len(parts) > 1 and missing:
        if not (folder / WEIGHTS).is_dir():
            with whole_folder(folder / WEIGHTS) as partial:
                save_weights(partial)
        runner([_task(material, folder, part, len(parts)) for part in missing], following)
    found = _found(equipment, plan, folder, 0, norms, following)
    try:
        for part in parts[1:]:
            found.merge(_found(equipment, plan, folder, part, norms, following))
    except BaseException:
        found.close()
        raise
    return found, from_state(plan.counts)


def _found(
    equipment: Equipment, plan: Plan, folder: Path, part: int, norms: NormFilter, following: Following
) -> Accumulators:
    """What was found on a part, now or earlier; `norms` gets its counts."""
    of = f"part {part + 1} of {len(plan.parts)} of the held-out texts"
    found: tuple[Accumulators, NormFilter] | None = None
    if is_measured(folder, part):
        try:
            found = load_part(equipment, folder, part, lambda _: following.say(f"reading {of}"))
            following.say(f"{of} is measured already")
        except PartError as error:
            following.say(f"{of} is measured again: {error}")
            shutil.rmtree(result(folder, part))
    found = found or measure(equipment, plan, folder, part, following, following.tick)
    norms.merge(found[1])
    return found[0]


def _plan(material: Material, equipment: Equipment, folder: Path, norms: NormFilter, following: Following) -> Plan:
    """The plan of an earlier attempt if there is one and it is about the same; else a new one, and nothing measured."""
    key = _key(material, equipment.crosscoder, norms)
    if (folder / PLAN).is_dir():
        try:
            plan = Plan.load(folder / PLAN)
        except PlanError as error:
            following.say(f"the held-out texts are measured again: {error}")
        else:
            if plan.key == key:
                for left in folder.glob(f"{PARTIAL}*"):
                    shutil.rmtree(left, ignore_errors=True)
                return plan
            following.say("the held-out texts are measured again: the recipe, the weights or the models have changed")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with whole_folder(folder / PLAN) as partial:
            plan = _made(material, equipment, partial, key, norms, following)
            plan.save(partial)
    except OSError as error:
        if is_no_room(error):
            raise AnalysisError(f"no room in {folder} for the held-out texts ({error}); free space there") from error
        raise
    return plan


def _made(
    material: Material, equipment: Equipment, folder: Path, key: str, norms: NormFilter, following: Following
) -> Plan:
    """Reads and cuts the held-out texts, and divides them into parts; their file is written to `folder`."""
    recipe, stream = material.recipe, material.texts("held_out")
    cutter = Cutter(recipe.analysis, len(recipe.data), block_tokens(equipment.crosscoder))
    windows: list[Planned] = []
    num_tokens = 0
    for window in write_texts(folder, windows_of(stream, material.activations), recipe.tokens, cutter):
        windows.append(window)
        num_tokens += window.num_tokens
        following(Stage.ANALYSE, 0.0, f"{num_tokens} held-out tokens read")
    stream.check_losses()
    plan = plan_of(folder, key, windows, recipe.analysis.parts, as_state(stream.counts))
    if len(plan.parts) > 1 and (reference := _reference(equipment, plan, folder, norms, following)):
        return replace(plan, reference=reference)
    return replace(plan, parts=((0, len(windows)),), reference=Reference(norms.bounds))


@torch.no_grad()
def _reference(
    equipment: Equipment, plan: Plan, folder: Path, norms: NormFilter, following: Following
) -> Reference | None:
    """What the first block says about all tokens; None if there is none, because every token is an outlier."""
    found = NormFilter(norms.ratio, equipment.crosscoder.d_model, norms.bounds)
    windows = chain.from_iterable(plan.read(folder, part) for part in range(len(plan.parts)))
    harvested = harvest_cut(equipment, windows, found, 0, following.tick)
    for first in intakes(equipment.crosscoder, harvested, 0):
        return Reference(found.bounds, outlier_limits(equipment.crosscoder, first.block))
    return None


def _task(material: Material, folder: Path, part: int, num_parts: int) -> PartTask:
    workspace = material.workspace
    roots = tuple(map(str, workspace.data_roots))
    recipe = recipe_dict(material.recipe)
    return PartTask(recipe, str(workspace.home), str(folder), part, num_parts, material.float32, roots)


def _key(material: Material, crosscoder: Crosscoder, norms: NormFilter) -> str:
    """What measurements depend on, as a hash: the recipe, the models' files, the weights, the bounds of the norms, and
    this program.
    """
    weights = hashlib.blake2b()
    for tensor in (crosscoder.b_enc, crosscoder.b_dec, crosscoder.W_enc.T, crosscoder.W_dec):
        step = max(1, len(tensor) // _ROWS) if tensor.ndim > 1 else 1
        weights.update(tensor[::step].contiguous().cpu().numpy().tobytes())
    keep = StoredKeep.of(crosscoder.keep, crosscoder.num_latents)
    facts = {
        "format": _FORMAT,
        "program": version("crosscope-worker"),
        "recipe": recipe_dict(material.recipe),
        "models": material.hashes,
        "weights": weights.hexdigest(),
        "reads": [repr(keep), crosscoder.input_scale, crosscoder.streams.name, crosscoder.code_normalisation],
        "float32": material.float32,
        "bounds": repr(norms.bounds),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
