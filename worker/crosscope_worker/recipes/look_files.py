"""Writes a look's folder whole, in the place of an earlier one. Does not know how the tables were made."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.looks import MANIFEST, LookManifest
from crosscope_proto.manifest import ManifestError, manifest_text, parse_look_manifest
from crosscope_worker.disk import PARTIAL, is_no_room, sha256, sync_tree
from crosscope_worker.recipes.publish import PublishError
from crosscope_worker.sharing import Sharing


def published_look(folder: Path, job: str) -> LookManifest | None:
    """The look that `job` has written to a folder; None if it has not."""
    try:
        manifest = parse_look_manifest((folder / MANIFEST).read_bytes())
    except (OSError, ManifestError):
        return None
    return manifest if manifest.job == job else None


def write_look(
    folder: Path,
    manifest: LookManifest,
    tables: Mapping[str, pa.Table],
    fence: Callable[[], None],
    sharing: Sharing,
) -> LookManifest:
    """Writes a look and returns its manifest, with the tables' hashes.

    Raises PublishError if there is no room, StoreError, and what `fence` raises; the earlier look then stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = folder.with_name(f"{PARTIAL}{folder.name}-{manifest.job}")
    shutil.rmtree(written, ignore_errors=True)
    try:
        written.mkdir()
        for name, table in tables.items():
            with (written / name).open("wb") as file:
                pq.write_table(table, file, compression="zstd")
        manifest = replace(manifest, hashes=manifest.hashes | {name: sha256(written / name) for name in tables})
        (written / MANIFEST).write_text(manifest_text(manifest), "utf-8")
        sync_tree(written)
        sharing.publish("looks", manifest.name, written, folder, fence)
    except OSError as error:
        if is_no_room(error):
            size = sum(table.nbytes for table in tables.values())
            free = shutil.disk_usage(folder.parent).free
            raise PublishError(
                f"no room to write the look into {folder.parent}: up to {size} bytes are needed, {free} are free; "
                "nothing was changed. Free space, raise the quota, or set CROSSCOPE_HOME to another disk"
            ) from error
        raise
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return manifest
