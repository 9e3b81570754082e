"""What the looks below a home say about the layer of a recipe. Knows nothing about gRPC."""

from collections.abc import Iterator
from pathlib import Path

from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest, pair_folder
from crosscope_proto.looks import LAYER_COLUMNS, LITTLE
from crosscope_proto.manifest import ManifestError, parse_pair_manifest
from crosscope_proto.recipe import CrosscoderRecipe, PublishedRecipe
from crosscope_proto.roots import Roots
from crosscope_proto.specs import AdapterSpec, PairSpec
from crosscope_server.errors import BrokenArtefact, Unavailable
from crosscope_server.looks import LookCard, Looks
from crosscope_server.tables import TableFolder
from crosscope_store.shelf import ALONE, Shelf

_Models = tuple[str, ...]
"""What makes a pair another one: base, chat, adapter, and their revisions; folders are absolute."""


def layer_warnings(
    recipe: CrosscoderRecipe | PublishedRecipe, home: Path, roots: Roots, shelf: Shelf = ALONE
) -> Iterator[str]:
    """A sentence if the newest look of the recipe's pair says that its layer carries little of what differs.

    A look of a pair whose models lie elsewhere, or have changed since, says nothing.
    """
    try:
        models = _models_of(recipe.pair, home, roots)
        cards = [card for card in Looks(home).cards()[0] if card.manifest.layers]
    except (OSError, ManifestError, BrokenArtefact):
        return  # The pair's own check says what is wrong with it, and ListLooks what is wrong with the looks.
    card = next((card for card in cards if _models(card.manifest.pair, Path("/"), None) == models), None)
    if card is None:
        return
    name = card.manifest.name
    if _have_changed(card, roots):
        yield f"the look {name!r} is older than the pair's models, so it says nothing about layer: look again"
        return
    try:
        yield from _little(recipe.layer, card, home, shelf)
    except (BrokenArtefact, Unavailable) as error:
        yield f"the look {name!r} cannot be read, so layer is not compared with it: {error.sentence}"


def _little(layer: int, card: LookCard, home: Path, shelf: Shelf) -> Iterator[str]:
    manifest = card.manifest
    files = TableFolder(home / "looks" / manifest.name, manifest.hashes, "look again", shelf)
    rows = {row["layer"]: row for row in files.read("layers.parquet", LAYER_COLUMNS).to_pylist()}
    if not rows:
        return
    nearest = min(rows, key=lambda each: (abs(each - layer), each))
    row = rows[nearest]
    best = rows.get(-1 if manifest.recommended_layer is None else manifest.recommended_layer)
    if best is None or min(row["share_chat"], row["share_base"]) >= LITTLE or nearest == best["layer"]:
        return
    of = "" if nearest == layer else f" (of layer {nearest}, the nearest that was swept)"
    yield (
        f"layer {layer} carries little of what differs between the models: by the look {manifest.name!r}, base's "
        f"stream put into chat takes {_percent(row, 'share_chat')} of the difference away, and chat's put into base "
        f"brings {_percent(row, 'share_base')} of it{of}; at layer {best['layer']}, which it recommends, "
        f"{_percent(best, 'share_chat')} and {_percent(best, 'share_base')}"
    )


def _percent(row: dict[str, float], name: str) -> str:
    error = row[f"{name}_se"]
    return f"{row[name]:.0%}" + (f" ± {error:.0%}" if error == error else "")


def _models_of(spec: PairSpec, home: Path, roots: Roots) -> _Models:
    """The models of a recipe's pair. Raises OSError or ManifestError for a pair that cannot be read."""
    folder = home
    if spec.base is None or spec.chat is None:
        folder = Path(pair_folder(home, spec.name))
        path = folder / PAIR_MANIFEST
        if not roots.allows(path):
            raise PermissionError
        return _models(parse_pair_manifest(path.read_bytes()), folder, roots)
    chat, adapter, revision, adapter_revision = spec.chat, None, spec.revision_chat, None
    if isinstance(chat, AdapterSpec):
        adapter, adapter_revision = chat.adapter, chat.revision
        revision = revision if chat.base else spec.revision_base
        chat = chat.base or spec.base
    manifest = PairManifest(
        spec.name,
        spec.base,
        chat,
        chat,
        revision_base=spec.revision_base,
        revision_chat=revision,
        adapter=adapter,
        adapter_revision=adapter_revision,
    )
    return _models(manifest, folder, roots)


def _models(manifest: PairManifest, folder: Path, roots: Roots | None) -> _Models:
    places = (manifest.base, manifest.chat, manifest.adapter)
    revisions = (manifest.revision_base, manifest.revision_chat, manifest.adapter_revision)
    return (*(_place(place, folder, roots) for place in places), *(each or "" for each in revisions))


def _place(source: str | None, folder: Path, roots: Roots | None) -> str:
    """An absolute folder, or a hub id as it stands."""
    if source is None or roots is None:
        return source or ""
    path = folder / Path(source).expanduser()
    return str(path.resolve()) if roots.allows(path) and path.is_dir() else source


def _have_changed(card: LookCard, roots: Roots) -> bool:
    """Whether a file of a model in a folder is newer than the look."""
    pair = card.manifest.pair
    folders = (Path(place) for place in (pair.base, pair.chat, pair.adapter) if place is not None)
    files = (path for folder in folders if folder.is_absolute() and roots.allows(folder) for path in folder.glob("*"))
    try:
        return any(path.stat().st_mtime > card.manifest.created_at for path in files if path.is_file())
    except OSError:
        return True
