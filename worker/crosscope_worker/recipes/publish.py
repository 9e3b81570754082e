"""Publishing: a version of a crosscoder appears whole, by one rename, or not at all.

    versions/.tmp-<id>/   written and synced file by file; with a store, its files are then written there
    versions/<id>/        renamed into place, right after the fence was asked, and after the store has its entry
    CURRENT               replaced last; its new content was written and synced before the rename

A reader follows CURRENT and reads one version's files; it never sees half of one. Two older versions stay for readers
that still use them, older ones go after a grace period. Does not know how the tables were made.
"""

import contextlib
import hashlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import CrosscoderManifest, PairManifest
from crosscope_proto.folders import bytes_of
from crosscope_proto.manifest import manifest_text
from crosscope_store.entries import Key, stamp
from crosscope_store.errors import StoreError, StoreTaken
from crosscope_worker.analysis import Analysis
from crosscope_worker.dictionary.crosscoder import TENSORS, Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import StoredKeep
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.disk import PARTIAL, is_no_room, move, sync, sync_tree, whole, write_whole
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.recipes.version_tables import file_hashes, write_table, write_tables
from crosscope_worker.sharing import Sharing
from crosscope_worker.work import Progress, Workspace

KEPT_VERSIONS = 2
GRACE_S = 600.0
"""Seconds after which a superseded version beyond the newest KEPT_VERSIONS goes; the same for the folder of a dead
attempt."""
_TEMPORARY = ".tmp-"
_ALONE = Sharing()
_SOFTWARE = ("crosscope-worker", "torch", "transformers", "numpy", "pyarrow")


class PublishError(OSError):
    """A version that could not be written; the message names the folder, the bytes needed and the bytes free."""


@dataclass(frozen=True)
class Provenance:
    """The facts in the manifest beyond the weights and the analysis."""

    pair: PairManifest
    """The pair's manifest, with absolute folders or hub ids."""
    layer: int
    recipe: dict[str, object]
    training_tokens: int = 0
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    """Number of texts that were left out, by data set and reason."""
    texts: dict[str, dict[str, int]] = field(default_factory=dict)
    """See CrosscoderManifest."""
    job: str = ""
    """Id of the job that publishes."""
    norms: NormBounds | None = None
    """Bounds of the norm beyond which tokens count as outliers."""
    norm_left_out: int = 0
    """Number of tokens that were left out as outliers."""
    warnings: tuple[str, ...] = ()
    """See CrosscoderManifest."""
    chat_template_date: str = ""
    """The day that the chat template printed, YYYY-MM-DD."""
    float32: str = ""
    """See CrosscoderManifest."""
    hashes: dict[str, str] | None = None
    """SHA-256 by name, for instance of the tokenizer and of both models; the hashes of the written files are added."""


def publish(
    home: Path,
    name: str,
    crosscoder: Crosscoder,
    provenance: Provenance,
    analysis: Analysis,
    curves: Sequence[tuple[int, str, float]],
    fence: Callable[[], None],
    sharing: Sharing = _ALONE,
) -> CrosscoderManifest:
    """Writes a version of crosscoder `name` below `home`, makes it the current one, and returns its manifest.

    `curves` are (step, figure, value). Raises PublishError if there is no room, StoreError if the store of `sharing`
    does not take it, and passes on what `fence` raises (LostClaim, Cancelled); then nothing of the version remains,
    but what `sharing` keeps for a retry, and CURRENT is unchanged.
    """

    def fill(folder: Path, now: float) -> CrosscoderManifest:
        write_tables(folder, analysis, curves, crosscoder.num_latents)
        manifest = _measured(manifest_of(name, crosscoder, provenance), analysis, now)
        crosscoder.save(folder, manifest)
        return manifest

    weights = sum(getattr(crosscoder, each).nbytes for each in TENSORS)
    tables = sum(table.nbytes for table in (analysis.latents, analysis.sequences, analysis.examples))
    return _publish(Path(layout.crosscoder_folder(home, name)) / "versions", fill, weights + tables, fence, sharing)


def publish_again(
    home: Path,
    manifest: CrosscoderManifest,
    latents: pa.Table,
    fence: Callable[[], None],
    sharing: Sharing = _ALONE,
) -> CrosscoderManifest:
    """Writes a version like that of `manifest.version_id`, with another table of latents, and makes it current.

    Everything else in the manifest is taken as it is; the version's id, its time and its files' hashes are new. Raises
    as `publish` does.
    """
    old = Path(layout.version_folder(home, manifest.name, manifest.version_id))
    sharing.shelf.need_all(old)

    def fill(folder: Path, now: float) -> CrosscoderManifest:
        _copy(old, folder)
        write_table(folder / layout.LATENTS, latents)
        software = {package: version(package) for package in _SOFTWARE}
        return replace(manifest, version_id="", created_at=now, software=software)

    return _publish(old.parent, fill, bytes_of(old), fence, sharing)


def _copy(old: Path, folder: Path) -> None:
    """Copies the files of a version, but not what is said of it."""
    ignored = shutil.ignore_patterns(layout.MANIFEST, layout.STORE_NOTE)
    shutil.copytree(old, folder, dirs_exist_ok=True, ignore=ignored)


def _publish(
    versions: Path,
    fill: Callable[[Path, float], CrosscoderManifest],
    size_bytes: int,
    fence: Callable[[], None],
    sharing: Sharing,
) -> CrosscoderManifest:
    """Makes a version that `fill(folder, now)` writes, about `size_bytes` large, and makes it the current one."""
    versions.mkdir(parents=True, exist_ok=True)
    now = time.time()
    temporary = versions / f"{_TEMPORARY}{stamp(now)}-{os.getpid()}"
    try:
        temporary.mkdir()
        manifest = fill(temporary, now)
        hashes = file_hashes(temporary)
        content = hashlib.sha256("".join(f"{file}:{hashes[file]}\n" for file in sorted(hashes)).encode()).hexdigest()
        manifest = replace(manifest, hashes=manifest.hashes | hashes | {"content": content})
        write_whole(temporary / layout.MANIFEST, manifest_text(manifest))
        sync_tree(temporary)
        manifest = _place(temporary, versions, manifest, now, fence, sharing)
    except StoreError as error:
        sharing.keep(temporary, error)
        raise
    except (OSError, SafetensorError) as error:
        if is_no_room(error):
            raise _no_room(versions, size_bytes, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # If two publications sweep at once, one may fail; the version is published, and the next publication sweeps again.
    with contextlib.suppress(OSError):
        remove_old_versions(versions.parent, time.time())
    sharing.retire("crosscoders", manifest.name)
    return manifest


def _place(
    temporary: Path,
    versions: Path,
    manifest: CrosscoderManifest,
    now: float,
    fence: Callable[[], None],
    sharing: Sharing,
) -> CrosscoderManifest:
    """Gives a written version an id that nobody else has, and puts it in its place, in the store and here."""
    upload = sharing.upload("crosscoders", manifest.name, temporary)
    with whole(versions.parent / layout.CURRENT) as pointer:
        while True:
            begun = sharing.stamp("crosscoders", manifest.name, now)
            manifest = replace(manifest, version_id=f"{begun}-{manifest.hashes['content'][:12]}")
            write_whole(temporary / layout.MANIFEST, manifest_text(manifest))
            _point(pointer, manifest)
            fence()
            try:
                sharing.commit(upload, Key("crosscoders", manifest.name, manifest.version_id), temporary)
                break
            except StoreTaken:
                continue  # The next id is later than the one that was taken.
        target = versions / manifest.version_id
        if not (target / layout.STORE_NOTE).exists():  # A server on this home may have brought it just now.
            move(temporary, target)
    sync(versions.parent.parent)
    return manifest


def make_current(home: Path, manifest: CrosscoderManifest, fence: Callable[[], None]) -> None:
    """Points CURRENT at a published version, unless it already points there or at a newer version.

    This is for an attempt after one that was killed between its two last renames. Whatever `fence` raises passes
    through.
    """
    folder = Path(layout.crosscoder_folder(home, manifest.name))
    if (read_current(folder) or "") >= manifest.version_id:
        return
    with whole(folder / layout.CURRENT) as pointer:
        _point(pointer, manifest)
        fence()


def _point(pointer: Path, manifest: CrosscoderManifest) -> None:
    """Writes and syncs the new content of CURRENT, so that only renames are left after the fence."""
    pointer.write_text(f"{manifest.version_id}\n", encoding="utf-8")
    sync(pointer)


def already_published(name: str, workspace: Workspace, progress: Progress) -> CrosscoderManifest | None:
    """The version that an earlier attempt of this job published, now the current one, or None.

    What an earlier attempt made and could not publish is published now. Raises as `publish` does.
    """
    if (published := find_published(workspace.home, name, workspace.folder.name)) is not None:
        make_current(workspace.home, published, workspace.fence)
        return published
    sharing = Sharing.of(workspace, progress)
    if (kept := sharing.kept("crosscoders")) is None:
        return None
    manifest = read_manifest(kept)

    def fill(folder: Path, now: float) -> CrosscoderManifest:
        _copy(kept, folder)
        return replace(manifest, created_at=now)

    versions = Path(layout.crosscoder_folder(workspace.home, name)) / "versions"
    return _publish(versions, fill, bytes_of(kept), workspace.fence, sharing)


def find_published(home: Path, name: str, job: str) -> CrosscoderManifest | None:
    """The newest version of crosscoder `name` that `job` has published, or None."""
    versions = Path(layout.crosscoder_folder(home, name)) / "versions"
    for folder in sorted(versions.glob("[!.]*"), reverse=True):
        try:
            manifest = read_manifest(folder)
        except CrosscoderError:
            continue  # Readers of a damaged version get an error; this job skips it.
        if manifest.job == job:
            return manifest
    return None


def remove_old_versions(folder: Path, now: float) -> list[str]:
    """Removes old versions from a crosscoder's folder, and what dead attempts left; returns the removed names.

    The current version, the newest KEPT_VERSIONS, and versions that were superseded less than GRACE_S ago stay.
    """
    versions = folder / "versions"
    current = read_current(folder)
    newest_first = sorted((each for each in versions.iterdir() if not each.name.startswith(".")), reverse=True)
    successors = newest_first[KEPT_VERSIONS - 1 :]
    doomed = [
        old
        for newer, old in itertools.pairwise(successors)
        if old.name != current and now - newer.stat().st_mtime > GRACE_S
    ]
    for each in doomed:
        # Hidden by a rename first, so that a listing never shows a version that is half removed.
        hidden = versions / f"{_TEMPORARY}{each.name}"
        move(each, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    left = [*versions.glob(f"{_TEMPORARY}*"), *folder.glob(f"{PARTIAL}*")]
    dead = [each for each in left if now - each.stat().st_mtime > GRACE_S]
    for each in dead:
        shutil.rmtree(each, ignore_errors=True)
    return [each.name for each in [*doomed, *dead]]


def read_current(folder: Path) -> str | None:
    """The id of a crosscoder's current version; None if nothing is published."""
    try:
        return (folder / layout.CURRENT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def manifest_of(name: str, crosscoder: Crosscoder, provenance: Provenance) -> CrosscoderManifest:
    """The manifest of a crosscoder that is neither measured nor published yet."""
    stored = StoredKeep.of(crosscoder.keep, crosscoder.num_latents)
    return CrosscoderManifest(
        name=name,
        version_id="",
        pair=provenance.pair,
        layer=provenance.layer,
        d_model=crosscoder.d_model,
        num_latents=crosscoder.num_latents,
        variant=crosscoder.variant,
        code_normalisation=crosscoder.code_normalisation,
        reads=crosscoder.streams.name,
        threshold=stored.threshold,
        token_k=stored.token_k,
        notes=crosscoder.notes,
        input_scale=crosscoder.input_scale,
        recipe=provenance.recipe,
        training_tokens=provenance.training_tokens,
        skipped_texts=sum(sum(reasons.values()) for reasons in provenance.skipped.values()),
        skipped=provenance.skipped,
        texts=provenance.texts,
        norm_limits=None if provenance.norms is None else provenance.norms.limits,
        norm_positions=() if provenance.norms is None else provenance.norms.positions,
        norm_left_out=provenance.norm_left_out,
        warnings=provenance.warnings,
        hashes=dict(provenance.hashes or {}),
        job=provenance.job,
        chat_template_date=provenance.chat_template_date,
        float32=provenance.float32,
    )


def _measured(manifest: CrosscoderManifest, analysis: Analysis, now: float) -> CrosscoderManifest:
    return replace(
        manifest,
        datasets=analysis.datasets,
        analysis_tokens=analysis.num_tokens,
        analysis_shards=analysis.num_shards,
        metrics={figure: value for figure, value in analysis.metrics.items() if math.isfinite(value)},
        class_counts=analysis.class_counts,
        histogram_edges=analysis.histogram_edges,
        warnings=manifest.warnings + analysis.warnings,
        uselessness=analysis.uselessness,
        unavailable=analysis.unavailable,
        software={package: version(package) for package in _SOFTWARE},
        created_at=now,
    )


def _no_room(versions: Path, size_bytes: int, error: OSError | SafetensorError) -> PublishError:
    free = shutil.disk_usage(versions).free
    return PublishError(
        f"no room to publish into {versions}: up to {size_bytes} bytes are needed, {free} are free "
        f"({error}); nothing was changed. Free space, raise the quota, or set CROSSCOPE_HOME to another disk"
    )
