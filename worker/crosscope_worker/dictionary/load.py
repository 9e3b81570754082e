"""Opens a crosscoder from a version folder of ours or from files in a published layout."""

from collections.abc import Callable
from pathlib import Path

import torch

from crosscope_proto.artefacts import MANIFEST, WEIGHTS
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.published import load_published, swapped
from crosscope_worker.dictionary.version import load_version


def load_crosscoder(
    path: Path | str,
    device: torch.device | str = "cpu",
    input_scale: tuple[float, float] | None = None,
    swap: bool = False,
    reads: str = "both",
    tell: Callable[[str], None] | None = None,
) -> Crosscoder:
    """The crosscoder of a version folder, or of a published folder or file (docs/published.md).

    `input_scale` (base, chat) is for published files that do not hold the scales of their inputs. `swap`: model 0 of
    the file is the chat model. `reads` "difference", "base" or "chat" says what a published dictionary of one stream of
    activations was trained on. `tell` hears of steps that take long.

    Raises CrosscoderError that names what is missing, cut short, damaged, not finite, unknown or contradictory.
    """
    folder = Path(path)
    if folder.name in (MANIFEST, WEIGHTS):
        folder = folder.parent
    if not (folder / MANIFEST).is_file():
        return load_published(folder, input_scale, swap, reads).to(device)
    if input_scale is not None:
        raise CrosscoderError(f"{folder / MANIFEST} holds the scales of its inputs; leave input_scale out")
    if reads != "both":
        raise CrosscoderError(f"{folder / MANIFEST} says what it reads; leave reads out")
    loaded = load_version(folder, device, tell)
    return swapped(loaded) if swap else loaded
