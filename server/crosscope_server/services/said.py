"""What is said about the latents of a version, as services need it: in memory, with a sentence where it is missing."""

from crosscope_server.annotations.records import Dictionary
from crosscope_server.annotations.snapshot import Snapshot
from crosscope_server.annotations.store import Annotations
from crosscope_server.catalogue import Version
from crosscope_server.errors import Conflict, Unavailable


def dictionary(version: Version) -> Dictionary:
    """What words about a version are about."""
    manifest = version.card.manifest
    return Dictionary(manifest.weights_id, manifest.name, manifest.num_latents)


async def words(annotations: Annotations, version: Version, *, is_needed: bool = False) -> tuple[Snapshot, list[str]]:
    """The words about a version, and sentences about words that are missing.

    Raises Unavailable or Conflict for words that are needed and cannot be read; others are missing.
    """
    try:
        return await annotations.snapshot(version.card.manifest.weights_id), []
    except (Unavailable, Conflict) as error:
        if is_needed:
            raise
        return Snapshot(), [f"labels and stars are missing: {error.sentence}"]


async def elsewhere(annotations: Annotations, version: Version) -> list[str]:
    """A sentence where words of the same name belong to other weights."""
    manifest = version.card.manifest
    found = str(await annotations.elsewhere(manifest.weights_id, manifest.name))
    if not found:
        return []
    which = f"{found} of {manifest.name} belong to other weights, which were published under this name"
    return [f"{which}: they are not about these latents; an export with earlier weights has them"]
