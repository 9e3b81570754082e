"""What a job writes to the disk, how long that stays, and whether the disk of the home has room for it.

The sizes are those of `crosscope_proto.job_disk`. Only warns: the job may run later, when there is more room. Knows
nothing about gRPC, and of files no more than their sizes.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crosscope_proto.artefacts import CURRENT, crosscoder_folder, version_folder
from crosscope_proto.dictionaries import ChoosesK
from crosscope_proto.folders import bytes_of
from crosscope_proto.job_disk import Measured
from crosscope_proto.label_specs import MAX_LABEL
from crosscope_proto.recipe import CausalRecipe, DemoPairRecipe, LabelRecipe, LookRecipe, PublishedRecipe
from crosscope_proto.specs import TrainingSpec
from crosscope_proto.training_memory import checkpoint_bytes, streams_of
from crosscope_server.jobs.estimate import Entry
from crosscope_server.jobs.hub import Download, cache_folder

Stays = Literal["training", "job", "kept"]
_SAID: dict[Stays, str] = {
    "training": "gone when training ends",
    "job": "removed once the job has succeeded",
    "kept": "kept",
}
_LABEL_BYTES = 4 * MAX_LABEL + 300
"""A label of the longest text, with its scores."""
_FINDING_BYTES, _SHOWN_TOKEN_BYTES, _LOOK_BYTES = 1000, 20, 2_000_000
"""Of a look: a finding; a token of a text that it shows; everything else."""


@dataclass(frozen=True)
class Written:
    """Something that a job writes."""

    name: str
    size_bytes: float | None
    """At most; None: unknown, and the note says why."""
    stays: Stays
    """How long: while the job trains, until it has succeeded, or after it."""
    note: str = ""
    is_late: bool = False
    """Whether it is written after the training."""

    @property
    def entry(self) -> Entry:
        """The same as an entry of a plan."""
        return Entry(self.name, self.size_bytes, "bytes", "; ".join(filter(None, (self.note, _SAID[self.stays]))))


@dataclass(frozen=True)
class DiskPlan:
    """What a job writes to the disk of the home (DiskPlan of the .proto)."""

    entries: Sequence[Entry] = ()
    peak_bytes: int = 0
    """Most of what is known that lies there at one time."""
    kept_bytes: int = 0
    """What is known to stay after the job."""
    free_bytes: int | None = None
    """What is free where the home lies; None if unknown."""
    left_bytes: int | None = None
    """What the home may still take in by its own limit; None without a limit."""

    @classmethod
    def of(cls, written: Sequence[Written], home: Path, left_bytes: int | None = None) -> "DiskPlan":
        """The plan of a job that writes these to the disk of `home`."""
        known = [(each, round(each.size_bytes)) for each in written if each.size_bytes is not None]
        in_training = sum(size for each, size in known if not each.is_late)
        later = sum(size for each, size in known if each.stays != "training")
        kept = sum(size for each, size in known if each.stays == "kept")
        return cls([each.entry for each in written], max(in_training, later), kept, free_bytes(home), left_bytes)

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None if unknown."""
        room = [each for each in (self.free_bytes, self.left_bytes) if each is not None]
        if any(self.peak_bytes > each for each in room):
            return False
        return None if self.free_bytes is None or any(each.value is None for each in self.entries) else True

    def too_little(self, home: Path) -> Iterator[str]:
        """Sentences where there is too little room for what is known."""
        needed = _gb(self.peak_bytes)
        if self.free_bytes is not None and self.peak_bytes > self.free_bytes:
            yield (
                f"the job takes up to {needed} of disk, but {_gb(self.free_bytes)} are free where {home} lies: free "
                "some, or ask for less"
            )
        if self.left_bytes is not None and self.peak_bytes > self.left_bytes:
            yield (
                f"the job takes up to {needed} of disk, but the home may take in {_gb(self.left_bytes)} more "
                "(CROSSCOPE_SERVER_HOME_GB): remove some with `crosscope gc`, or ask for less"
            )


def of_training(
    training: TrainingSpec, measured: Measured, num_devices: int, steps: int | None, most_tokens: float
) -> Iterator[Written]:
    """The checkpoints of a training that starts on so many devices.

    `steps` None: their number is unknown; `most_tokens`: those of all epochs at most.
    """
    size = checkpoint_bytes(measured.spec, training, measured.d_model, num_devices, most_tokens)
    streams, _ = streams_of(training, num_devices)
    files = f"{streams} streams, {num_devices} ranks" if (streams, num_devices) != (1, 1) else ""
    yield Written("checkpoint", size, "job", files)
    if steps is None or steps > training.checkpoint_every:
        yield Written("next checkpoint", size, "training", "beside the one before, while it is written")


def of_analysis(measured: Measured) -> Iterator[Written]:
    """The parts of the held-out texts, and the published version."""
    number = measured.num_parts
    parts = f"{number} parts" if number > 1 else "one part"
    yield Written("parts: held-out texts", measured.texts_bytes(), "job", is_late=True)
    yield Written("parts: sums", measured.sums_bytes(), "job", parts, is_late=True)
    assumed = "" if isinstance(measured.spec, ChoosesK) else f"if {measured.active:g} latents are active on a token"
    yield Written("parts: codes", measured.codes_bytes(), "job", assumed, is_late=True)
    if number > 1:
        yield Written("parts: weights", measured.weights_bytes, "job", "if a cluster measures them", is_late=True)
    yield Written("version: weights", measured.weights_bytes, "kept", is_late=True)
    yield Written("version: tables", measured.tables_bytes(), "kept", "about", is_late=True)
    about = f"about, {assumed}" if assumed else "about"
    yield Written("version: examples", measured.examples_bytes(), "kept", about, is_late=True)


def of_downloads(downloads: Sequence[Download], home: Path) -> Iterator[Written]:
    """What comes from the hub, where the hub's cache lies on the disk of the home. Data sets are read as they come."""
    if _device(cache_folder()) == _device(home):
        for each in downloads:
            if not each.field.startswith("data."):
                note = "in the hub's cache" if each.size_bytes is not None else "its size is not known; the hub's cache"
                yield Written(f"download: {each.field}", each.size_bytes, "kept", note)


def no_room_for(downloads: Sequence[Download], home: Path) -> Iterator[str]:
    """A sentence if the hub's cache lies on another disk than the home, and has too little room for what comes."""
    cache = cache_folder()
    needed, free = sum(each.size_bytes or 0 for each in downloads), free_bytes(cache)
    if _device(cache) != _device(home) and free is not None and needed > free:
        yield (
            f"the job downloads {_gb(needed)}, but {_gb(free)} are free where the hub's cache {cache} lies: free some, "
            "or set HF_HOME"
        )


def of_others(
    recipe: DemoPairRecipe | LabelRecipe | LookRecipe | CausalRecipe | PublishedRecipe, home: Path, num_labels: int = 0
) -> Iterator[Written]:
    """What a job writes that trains no dictionary. `num_labels`: the latents that it labels."""
    match recipe:
        case DemoPairRecipe():
            yield Written("texts", recipe.text_bytes, "kept", "with the tokenizer")
            yield Written("models", 2 * recipe.model_bytes, "kept", "both, in float32", is_late=True)
            yield Written("checkpoint", recipe.model_bytes, "job", "the base model")
        case LabelRecipe():
            yield Written("labels", num_labels * _LABEL_BYTES, "kept", "a file, then among the words of the home")
        case LookRecipe():
            shown = recipe.num_conversations + recipe.num_findings + recipe.num_prompts
            size = recipe.num_findings * _FINDING_BYTES + shown * recipe.tokens.max_length * _SHOWN_TOKEN_BYTES
            yield Written("look", size + _LOOK_BYTES, "kept")
        case CausalRecipe():
            size = _current_bytes(home, recipe.name)
            why = "" if size is not None else "there is no version yet"
            yield Written("version", size, "kept", why or "a copy of the newest one with more columns")
        case PublishedRecipe():
            why = "the number of latents is not known before its file is read"
            yield Written("parts", None, "job", why, is_late=True)
            yield Written("version", None, "kept", why, is_late=True)


def _current_bytes(home: Path, name: str) -> int | None:
    """The size of a crosscoder's newest version; None if it has none."""
    try:
        version_id = (Path(crosscoder_folder(home, name)) / CURRENT).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return bytes_of(Path(version_folder(home, name, version_id)))


def free_bytes(folder: Path) -> int | None:
    """What is free where a folder lies or will lie; None if unknown."""
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None


def _device(folder: Path) -> int | None:
    """What tells the disk of a folder from others; None if unknown."""
    try:
        return _existing(folder).stat().st_dev
    except OSError:
        return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((each for each in (folder, *folder.parents) if each.exists()), folder)


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
