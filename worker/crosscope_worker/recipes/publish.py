"""Publishing: a version of a crosscoder appears whole, by one rename, or not at all.

    versions/.tmp-<id>/   written and synced file by file
    versions/<id>/        renamed into place, right after the fence was asked
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
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import CrosscoderManifest, PairManifest
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import METRIC_COLUMNS
from crosscope_proto.manifest import manifest_text
from crosscope_worker.analysis import Analysis
from crosscope_worker.dictionary.crosscoder import TENSORS, Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import StoredKeep
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.disk import PARTIAL, is_no_room, move, sha256, sync, sync_tree, whole, write_whole
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.work import Workspace

KEPT_VERSIONS = 2
GRACE_S = 600.0
"""Seconds after which a superseded version beyond the newest KEPT_VERSIONS goes; the same for the folder of a dead
attempt."""
_TEMPORARY = ".tmp-"
_SOFTWARE = ("crosscope-worker", "torch", "transformers", "numpy", "pyarrow")
_MAX_ROWS_PER_GROUP = 1 << 16


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
) -> CrosscoderManifest:
    """Writes a version of crosscoder `name` below `home`, makes it the current one, and returns its manifest.

    `curves` are (step, figure, value). Raises PublishError if there is no room, and passes on what `fence` raises
    (LostClaim, Cancelled); in both cases nothing of the version remains and CURRENT is unchanged.
    """

    def fill(folder: Path, now: float) -> CrosscoderManifest:
        _write_tables(folder, analysis, curves, crosscoder.num_latents)
        manifest = _measured(manifest_of(name, crosscoder, provenance), analysis, now)
        crosscoder.save(folder, manifest)
        return manifest

    weights = sum(getattr(crosscoder, each).nbytes for each in TENSORS)
    tables = sum(table.nbytes for table in (analysis.latents, analysis.sequences, analysis.examples))
    return _publish(Path(layout.crosscoder_folder(home, name)) / "versions", fill, weights + tables, fence)


def publish_again(
    home: Path, manifest: CrosscoderManifest, latents: pa.Table, fence: Callable[[], None]
) -> CrosscoderManifest:
    """Writes a version like that of `manifest.version_id`, with another table of latents, and makes it current.

    Everything else in the manifest is taken as it is; the version's id, its time and its files' hashes are new. Raises
    as `publish` does.
    """
    old = Path(layout.version_folder(home, manifest.name, manifest.version_id))

    def fill(folder: Path, now: float) -> CrosscoderManifest:
        shutil.copytree(old, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(layout.MANIFEST))
        _write_table(folder / layout.LATENTS, latents)
        software = {package: version(package) for package in _SOFTWARE}
        return replace(manifest, version_id="", created_at=now, software=software)

    size_bytes = sum(path.stat().st_size for path in old.rglob("*") if path.is_file())
    return _publish(old.parent, fill, size_bytes, fence)


def _publish(
    versions: Path, fill: Callable[[Path, float], CrosscoderManifest], size_bytes: int, fence: Callable[[], None]
) -> CrosscoderManifest:
    """Makes a version that `fill(folder, now)` writes, about `size_bytes` large, and makes it the current one."""
    versions.mkdir(parents=True, exist_ok=True)
    now = time.time()
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%S%f")[:-3]
    temporary = versions / f"{_TEMPORARY}{stamp}-{os.getpid()}"
    try:
        temporary.mkdir()
        manifest = fill(temporary, now)
        hashes = _hashes(temporary)
        content = hashlib.sha256("".join(f"{file}:{hashes[file]}\n" for file in sorted(hashes)).encode()).hexdigest()
        manifest = replace(
            manifest, version_id=f"{stamp}-{content[:12]}", hashes=manifest.hashes | hashes | {"content": content}
        )
        write_whole(temporary / layout.MANIFEST, manifest_text(manifest))
        sync_tree(temporary)
        with whole(versions.parent / layout.CURRENT) as pointer:
            _point(pointer, manifest)
            fence()
            move(temporary, versions / manifest.version_id)
        sync(versions.parent.parent)
    except (OSError, SafetensorError) as error:
        if is_no_room(error):
            raise _no_room(versions, size_bytes, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # If two publications sweep at once, one may fail; the version is published, and the next publication sweeps again.
    with contextlib.suppress(OSError):
        remove_old_versions(versions.parent, time.time())
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


def already_published(name: str, workspace: Workspace) -> CrosscoderManifest | None:
    """The version that an earlier attempt of this job published, now the current one, or None."""
    if (published := find_published(workspace.home, name, workspace.folder.name)) is not None:
        make_current(workspace.home, published, workspace.fence)
    return published


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


def _write_tables(folder: Path, analysis: Analysis, curves: Sequence[tuple[int, str, float]], num_latents: int) -> None:
    """Writes every table."""
    schema = arrow_schema(METRIC_COLUMNS)
    rows = [dict(zip(schema.names, row, strict=True)) for row in curves]
    _write_table(folder / layout.METRICS, pa.Table.from_pylist(rows, schema=schema))
    _write_table(folder / layout.LATENTS, analysis.latents)
    _write_table(folder / layout.SEQUENCES, analysis.sequences)
    if analysis.behaviours.num_rows:
        _write_table(folder / layout.BEHAVIOURS, analysis.behaviours)
    (folder / layout.EXAMPLES).mkdir()
    _write_examples(folder / layout.EXAMPLES, analysis.examples, num_latents)


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every table and of the weights, by its name below the folder."""
    files = [*sorted(folder.rglob("*.parquet")), folder / layout.WEIGHTS]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _write_table(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=_MAX_ROWS_PER_GROUP)


def _write_examples(folder: Path, examples: pa.Table, num_latents: int) -> None:
    """Writes files of contiguous latents, with a row group for every EXAMPLE_LATENTS_PER_ROW_GROUP latents that have
    rows.
    """
    latent = examples.column("latent").to_numpy()
    if np.any(latent[1:] < latent[:-1]):
        raise ValueError("the examples are not sorted by latent; sort them first")
    group = layout.EXAMPLE_LATENTS_PER_ROW_GROUP
    for first in range(0, num_latents, layout.latents_per_part(num_latents)):
        last = min(first + layout.latents_per_part(num_latents), num_latents)
        edges = np.searchsorted(latent, np.append(np.arange(first, last, group), last))
        path = folder / layout.example_part(first, num_latents)
        with path.open("wb") as file, pq.ParquetWriter(file, examples.schema, compression="zstd") as writer:
            for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                if end > begin:
                    writer.write_table(examples.slice(begin, end - begin), row_group_size=end - begin)


def _no_room(versions: Path, size_bytes: int, error: OSError | SafetensorError) -> PublishError:
    free = shutil.disk_usage(versions).free
    return PublishError(
        f"no room to publish into {versions}: up to {size_bytes} bytes are needed, {free} are free "
        f"({error}); nothing was changed. Free space, raise the quota, or set CROSSCOPE_HOME to another disk"
    )
