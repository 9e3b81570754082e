"""What a recipe reads from the hub, as far as this machine knows without asking: its cache, and models of this table.

Knows nothing about gRPC.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto.recipe import CrosscoderRecipe, LookRecipe, PublishedRecipe
from crosscope_server.jobs.inputs import Model, is_hub_id, read_model


@dataclass(frozen=True)
class Download:
    """Something that a job reads from the hub (Download of the .proto); None where it is unknown."""

    field: str
    source: str
    size_bytes: int | None = None
    gated: bool | None = None


_GEMMA_2_2B = Model(num_layers=26, width=2304, size_bytes=5_228_683_776, dtype="bfloat16", vocab_size=256_000)
KNOWN: Mapping[str, Model] = {"google/gemma-2-2b": _GEMMA_2_2B, "google/gemma-2-2b-it": _GEMMA_2_2B}
"""Published models, from their configuration and their index of weights: 2 614 341 888 parameters, tied embeddings."""
_GATED = frozenset({*KNOWN, "lmsys/lmsys-chat-1m"})
"""Repositories for which one must ask on the hub."""


def cached_model(source: str, revision: str | None = None) -> Model | None:
    """A model in the hub's cache of this machine; None if it is not there whole."""
    folder = cache_folder() / f"models--{source.replace('/', '--')}"
    try:
        commit = (folder / "refs" / (revision or "main")).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError, ValueError):
        commit = revision or ""
    if not commit or not (folder / "snapshots" / commit).is_dir():
        return None
    try:
        found = read_model(folder / "snapshots" / commit)
    except OSError:
        return None
    return found if isinstance(found, Model) else None


def downloads(recipe: CrosscoderRecipe | PublishedRecipe | LookRecipe, home: Path) -> Iterator[Download]:
    """What a job reads from the hub that is not in this machine's cache."""
    pair = recipe.pair
    for name, source, revision in (
        ("base", pair.base, pair.revision_base),
        ("chat", pair.chat, pair.revision_chat),
        ("tokenizer", pair.tokenizer, None),
    ):
        if isinstance(source, str) and _is_remote(source, home) and cached_model(source, revision) is None:
            known = KNOWN.get(source) if name != "tokenizer" else None
            yield Download(f"pair.{name}", source, known.size_bytes if known else None, _gated(source))
    for i, spec in enumerate(recipe.data):
        if spec.source == "hub":  # A stream: how many bytes depends on how far it is read.
            yield Download(f"data.{i}.path", spec.path, None, _gated(spec.path))
    if isinstance(recipe, PublishedRecipe) and not (home / Path(recipe.path).expanduser()).exists():
        repository = "/".join(recipe.path.strip("/").split("/")[:2])
        if is_hub_id(repository):
            yield Download("path", recipe.path)


def _gated(source: str) -> bool | None:
    return True if source in _GATED else None


def _is_remote(source: str, home: Path) -> bool:
    path = Path(source).expanduser()
    return (
        not path.is_absolute() and is_hub_id(source) and source not in ("base", "chat") and not (home / path).is_dir()
    )


def cache_folder() -> Path:
    """The hub's cache on this machine; it need not exist."""
    if given := os.environ.get("HF_HUB_CACHE"):
        return Path(given)
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
