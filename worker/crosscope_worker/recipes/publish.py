"""Publishing: a version of a crosscoder appears whole, by one rename, or not at all.

    versions/.tmp-<id>/   written and synced file by file
    versions/<id>/        renamed into place, right after the fence was asked
    CURRENT               replaced last; its new content was written and synced before the rename

A reader follows CURRENT and reads one version's files; it never sees half of one. Two older versions stay for readers
that are still busy, older ones go after a grace period. Knows nothing about how the tables were made.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from crosscope_worker.analysis import Analysis
from crosscope_worker.data.norms import NormBounds
from crosscope_worker.dictionary.crosscoder import TENSORS, Crosscoder
from crosscope_worker.disk import is_no_room, sha256, sync

KEPT_VERSIONS = 2
GRACE_S = 600.0
"""A version beyond the newest KEPT_VERSIONS goes this long after it was superseded; so does a dead attempt's folder."""
_TEMPORARY = ".tmp-"
_SOFTWARE = ("crosscope-worker", "torch", "transformers", "numpy", "pyarrow")
_MAX_ROWS_PER_GROUP = 1 << 16


class PublishError(OSError):
    """A version that could not be written; the message names the folder, the bytes needed and the bytes free."""


@dataclass(frozen=True)
class Provenance:
    """What the manifest says beyond the weights and the analysis."""

    pair: PairManifest
    """With absolute folders or hub ids."""
    layer: int
    recipe: dict[str, object]
    training_tokens: int = 0
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    """Texts that were left out, by data set and reason."""
    texts: dict[str, dict[str, int]] = field(default_factory=dict)
    """See CrosscoderManifest."""
    job: str = ""
    """Id of the job that publishes."""
    norms: NormBounds | None = None
    """Which tokens count as outliers."""
    norm_left_out: int = 0
    """Tokens that were left out for it."""
    warnings: tuple[str, ...] = ()
    """Sentences about what was left out or is unusual."""
    chat_template_date: str = ""
    """The day that the chat template printed, YYYY-MM-DD."""
    hashes: dict[str, str] | None = None
    """SHA-256 by name, for instance of the tokenizer and of both models; those of the written files are added."""


def publish(
    home: Path,
    name: str,
    crosscoder: Crosscoder,
    provenance: Provenance,
    analysis: Analysis,
    curves: Sequence[tuple[int, str, float]],
    fence: Callable[[], None],
    clock: Callable[[], float] = time.time,
) -> CrosscoderManifest:
    """Writes a version of crosscoder `name` below `home`, makes it the current one, and returns its manifest.

    `curves` are (step, figure, value). Raises PublishError when there is no room, and lets what `fence` raises
    (LostClaim, Cancelled) pass; in both cases nothing of the version is left and CURRENT is as it was.
    """
    versions = Path(layout.crosscoder_folder(home, name)) / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    now = clock()
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%S%f")[:-3]
    temporary = versions / f"{_TEMPORARY}{stamp}-{os.getpid()}"
    pointer = versions.parent / f"{_TEMPORARY}{layout.CURRENT}-{stamp}-{os.getpid()}"
    try:
        temporary.mkdir()
        hashes = _write_tables(temporary, analysis, curves, crosscoder.num_latents)
        manifest = _measured(manifest_of(name, crosscoder, provenance), analysis, now)
        crosscoder.save(temporary, manifest)
        hashes |= {layout.WEIGHTS: sha256(temporary / layout.WEIGHTS)}
        content = hashlib.sha256("".join(f"{file}:{hashes[file]}\n" for file in sorted(hashes)).encode()).hexdigest()
        manifest = replace(
            manifest, version_id=f"{stamp}-{content[:12]}", hashes=manifest.hashes | hashes | {"content": content}
        )
        text = json.dumps(asdict(manifest), indent=2, sort_keys=True)
        (temporary / layout.MANIFEST).write_text(text + "\n", encoding="utf-8")
        _sync_tree(temporary)
        pointer.write_text(f"{manifest.version_id}\n", encoding="utf-8")
        sync(pointer)
        fence()
        temporary.rename(versions / manifest.version_id)
        pointer.replace(versions.parent / layout.CURRENT)
        for folder in (versions, versions.parent, versions.parent.parent):
            sync(folder)
    except (OSError, SafetensorError) as error:
        if is_no_room(error):
            raise _no_room(versions, crosscoder, analysis, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        pointer.unlink(missing_ok=True)
    # What is published stays published if two publications sweep at once; the next one sweeps again.
    with contextlib.suppress(OSError):
        remove_old_versions(versions.parent, clock())
    return manifest


def make_current(home: Path, manifest: CrosscoderManifest, fence: Callable[[], None]) -> None:
    """Points CURRENT at a published version unless it is there already or at a newer one.

    For an attempt that finds that an earlier one was killed between its two last renames. What `fence` raises passes.
    """
    folder = Path(layout.crosscoder_folder(home, manifest.name))
    if (read_current(folder) or "") >= manifest.version_id:
        return
    pointer = folder / f"{_TEMPORARY}{layout.CURRENT}-{manifest.version_id}-{os.getpid()}"
    try:
        pointer.write_text(f"{manifest.version_id}\n", encoding="utf-8")
        sync(pointer)
        fence()
        pointer.replace(folder / layout.CURRENT)
        sync(folder)
    finally:
        pointer.unlink(missing_ok=True)


def remove_old_versions(folder: Path, now: float) -> list[str]:
    """Removes versions of a crosscoder's folder that nobody should still read, and what dead attempts left.

    Kept are the current version, the newest KEPT_VERSIONS, and those superseded less than GRACE_S ago. Returns the
    removed names.
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
    left = [*versions.glob(f"{_TEMPORARY}*"), *folder.glob(f"{_TEMPORARY}*")]
    doomed += [each for each in left if now - each.stat().st_mtime > GRACE_S]
    for each in doomed:
        if each.is_dir():
            # Out of sight first: a listing never shows a version that is half gone.
            hidden = each.rename(versions / f"{_TEMPORARY}{each.name.removeprefix(_TEMPORARY)}")
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)
    return [each.name for each in doomed]


def read_current(folder: Path) -> str | None:
    """The id of a crosscoder's current version; None if nothing is published."""
    try:
        return (folder / layout.CURRENT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def manifest_of(name: str, crosscoder: Crosscoder, provenance: Provenance) -> CrosscoderManifest:
    """The manifest of a crosscoder that is neither measured nor published yet."""
    return CrosscoderManifest(
        name=name,
        version_id="",
        pair=provenance.pair,
        layer=provenance.layer,
        d_model=crosscoder.d_model,
        num_latents=crosscoder.num_latents,
        variant=crosscoder.variant,
        code_normalisation=crosscoder.code_normalisation,
        threshold=crosscoder.threshold,
        token_k=crosscoder.token_k,
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
        uselessness=analysis.uselessness,
        unavailable=analysis.unavailable,
        software={package: version(package) for package in _SOFTWARE},
        created_at=now,
    )


def _write_tables(
    folder: Path, analysis: Analysis, curves: Sequence[tuple[int, str, float]], num_latents: int
) -> dict[str, str]:
    """Writes every table; returns the SHA-256 of each file by its name below the folder."""
    schema = arrow_schema(METRIC_COLUMNS)
    rows = [dict(zip(schema.names, row, strict=True)) for row in curves]
    _write_table(folder / layout.METRICS, pa.Table.from_pylist(rows, schema=schema))
    _write_table(folder / layout.LATENTS, analysis.latents)
    _write_table(folder / layout.SEQUENCES, analysis.sequences)
    if analysis.behaviours.num_rows:
        _write_table(folder / layout.BEHAVIOURS, analysis.behaviours)
    (folder / layout.EXAMPLES).mkdir()
    _write_examples(folder / layout.EXAMPLES, analysis.examples, num_latents)
    files = sorted(path for path in folder.rglob("*.parquet"))
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _write_table(path: Path, table: pa.Table) -> None:
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=_MAX_ROWS_PER_GROUP)


def _write_examples(folder: Path, examples: pa.Table, num_latents: int) -> None:
    """Files of contiguous latents with a row group for every EXAMPLE_LATENTS_PER_ROW_GROUP of them that have rows."""
    latent = examples.column("latent").to_numpy()
    if np.any(latent[1:] < latent[:-1]):
        raise ValueError("examples must be sorted by latent")
    group = layout.EXAMPLE_LATENTS_PER_ROW_GROUP
    for first in range(0, num_latents, layout.latents_per_part(num_latents)):
        last = min(first + layout.latents_per_part(num_latents), num_latents)
        edges = np.searchsorted(latent, np.append(np.arange(first, last, group), last))
        path = folder / layout.example_part(first, num_latents)
        with path.open("wb") as file, pq.ParquetWriter(file, examples.schema, compression="zstd") as writer:
            for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                if end > begin:
                    writer.write_table(examples.slice(begin, end - begin), row_group_size=end - begin)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _no_room(
    versions: Path, crosscoder: Crosscoder, analysis: Analysis, error: OSError | SafetensorError
) -> PublishError:
    weights = sum(getattr(crosscoder, name).nbytes for name in TENSORS)
    tables = sum(table.nbytes for table in (analysis.latents, analysis.sequences, analysis.examples))
    free = shutil.disk_usage(versions).free
    return PublishError(
        f"no room to publish into {versions}: up to {weights + tables} bytes are needed, {free} are free "
        f"({error}); nothing was changed. Free space, raise the quota, or set CROSSCOPE_HOME to another disk"
    )
