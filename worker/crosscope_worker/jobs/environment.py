"""The environment of a job's process: clean, and with the variables that must be set before torch is imported.

Reads which folders exist, to tell a hub id from a folder. Knows nothing about Redis.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from crosscope_proto import environment
from crosscope_proto.artefacts import CURRENT, MANIFEST, PAIR_MANIFEST, crosscoder_folder, pair_folder, version_folder
from crosscope_proto.label_specs import Endpoint
from crosscope_proto.manifest import ManifestError, parse_manifest, parse_pair_manifest
from crosscope_proto.recipe import (
    CausalRecipe,
    DemoPairRecipe,
    LabelRecipe,
    PublishedRecipe,
    Recipe,
    RecipeError,
    parse_recipe,
    recipe_dict,
)
from crosscope_worker.addresses import is_local
from crosscope_worker.jobs.settings import JobSettings

_IDLE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""Waiting threads give their core away instead of spinning. With busy neighbours, spinning would delay every operation
by the neighbours' work. Changes no result."""
_NO_REFERENCE = ("name", "dtype", "revision_base", "revision_chat")
"""Fields of a recipe's pair that name neither a folder nor a hub id."""


def job_environment(given: Mapping[str, str], settings: JobSettings, recipe: str) -> dict[str, str]:
    """The environment of a job with this `recipe` (YAML), out of the job worker's environment `given`.

    Hub tokens and proxies are passed on only if the recipe names something that is not on this machine; keys of a store
    where the home has one.
    """
    groups = [environment.COMPUTE, environment.HUB]
    if uses_hub(recipe, settings.home):
        groups.append(environment.HUB_ACCESS)
    if settings.ray_address is not None:
        groups.append(environment.RAY)
    groups.extend(_for_labels(recipe))
    if settings.store is not None:
        groups += [environment.STORE, environment.PROXIES]
    made = _IDLE | environment.needed(given, *groups) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if settings.job_threads is not None:
        made |= {name: str(settings.job_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return made


def _for_labels(text: str) -> Iterator[tuple[str, ...]]:
    """What a recipe of kind label needs to call its endpoint: the key that it names, and the way out."""
    try:
        recipe = parse_recipe(text)
    except RecipeError:
        return
    if isinstance(recipe, LabelRecipe) and isinstance(recipe.explainer, Endpoint):
        if not is_local(recipe.explainer.address):
            yield environment.PROXIES
        if recipe.explainer.key is not None:
            yield (recipe.explainer.key,)


def uses_hub(text: str, home: Path) -> bool:
    """Whether a recipe (YAML) reads from the hub; no for a recipe that cannot be parsed."""
    try:
        recipe = parse_recipe(text)
    except RecipeError:
        return False
    if isinstance(recipe, CausalRecipe | LabelRecipe):
        if isinstance(recipe, LabelRecipe) and isinstance(recipe.explainer, Endpoint):
            return False
        return uses_hub(_made_by(recipe.name, home), home)
    if isinstance(recipe, DemoPairRecipe):
        return False
    if any(data.source == "hub" for data in recipe.data):
        return True
    named = list(_references(recipe, home))
    if isinstance(recipe, PublishedRecipe):
        named.append((recipe.path, home))
    return any(not (folder / Path(name).expanduser()).exists() for name, folder in named)


def _made_by(name: str, home: Path) -> str:
    """The recipe that made a crosscoder's current version; empty if that cannot be read."""
    try:
        version_id = (Path(crosscoder_folder(home, name)) / CURRENT).read_text("utf-8").strip()
        manifest = parse_manifest((Path(version_folder(home, name, version_id)) / MANIFEST).read_bytes())
    except (OSError, UnicodeDecodeError, ManifestError):
        return ""
    return json.dumps(manifest.recipe)


def _references(recipe: Recipe, home: Path) -> Iterator[tuple[str, Path]]:
    """The folders and hub ids of a recipe's pair, each with the folder in which a relative one is looked up."""
    folder = Path(pair_folder(home, recipe_dict(recipe)["pair"]["name"]))  # pyright: ignore[reportIndexIssue]
    yield from ((name, home) for name in _strings(recipe_dict(recipe)["pair"]))
    try:
        manifest = parse_pair_manifest((folder / PAIR_MANIFEST).read_bytes())
    except (OSError, ManifestError):
        return
    names = (manifest.base, manifest.chat, manifest.tokenizer, manifest.adapter)
    yield from ((name, folder) for name in names if name is not None)


def _strings(value: object) -> Iterator[str]:
    """Every text in a JSON value, except fields that name neither a folder nor a hub id."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NO_REFERENCE:
                yield from _strings(item)
