"""The functions that run the kinds of recipes. Imports none of them: torch loads in the job's own process."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from crosscope_worker.work import Manifest, Progress, Workspace

JobFunction = Callable[[Any, Workspace, Progress], Manifest]
"""A job: (recipe, workspace, progress) -> manifest."""

KINDS: Mapping[str, str] = {
    "crosscoder": "crosscope_worker.recipes.train:make_crosscoder",
    "published": "crosscope_worker.recipes.published:make_published",
    "look": "crosscope_worker.recipes.look:make_look",
    "causal": "crosscope_worker.recipes.causal:make_causal",
    "label": "crosscope_worker.recipes.label:make_labels",
    "demo-pair": "crosscope_worker.demo.pair:make_demo_pair",
}
"""The function of each kind of recipe, as module:name."""


def load_kind(kinds: Mapping[str, str], kind: str) -> JobFunction:
    """The function of a kind. Raises ValueError for an unknown kind."""
    if kind not in kinds:
        raise ValueError(f"this worker runs no jobs of kind {kind!r}, only {', '.join(sorted(kinds))}")
    module, _, name = kinds[kind].partition(":")
    return getattr(importlib.import_module(module), name)
