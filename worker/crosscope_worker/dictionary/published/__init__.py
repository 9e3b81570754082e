"""Crosscoders that others published, and ours in the layouts that others read (docs/published.md).

Each family of files has a module, which recognises the tensors, reads the options and builds a Crosscoder. Knows
nothing of training or analysis. A pickle is opened by `torch.load(weights_only=True)` alone.
"""

from pathlib import Path

from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.published import (
    crosscode,
    dictionary_learning,
    gemma_scope,
    one_model,
    openmoss,
    replication,
)
from crosscope_worker.dictionary.published.files import read_files
from crosscope_worker.dictionary.published.rules import find_rule
from crosscope_worker.dictionary.published.swap import swapped

__all__ = ["load_published", "swapped"]

_FAMILIES = (dictionary_learning, replication, openmoss, crosscode)


def load_published(
    path: Path,
    input_scale: tuple[float, float] | None = None,
    swap: bool = False,
    reads: str = "both",
) -> Crosscoder:
    """A published crosscoder, on the CPU, from a folder or a file that one of the families recognises.

    `input_scale` are the factors (base, chat) on the inputs, for files that do not hold them; `swap`: model 0 of the
    file is chat; `reads`: what a dictionary of one stream was trained on. Raises CrosscoderError that names what is
    missing, unknown or contradictory.
    """
    gemma_scope.check(path)
    files = read_files(path, swap)
    rule = find_rule(files)
    if swap and input_scale is not None:
        base, chat = input_scale
        input_scale = chat, base  # In the order of the file's models.
    if one_model.recognises(files):
        fields = one_model.fields(files, rule, input_scale, reads)
    else:
        family = next((each for each in _FAMILIES if each.recognises(files)), None)
        if family is None:
            held = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(files.tensors.items())[:12])
            raise CrosscoderError(
                f"{files.weights} is of an unknown layout: it holds {held or 'no tensor'}; known are encoder.weight "
                "and decoder.weight, W_enc and W_dec, W_E and W_D, _W_enc_XiDiL and _W_dec_LXoDo"
            )
        if reads != "both":
            raise files.error(f"it reads two models; leave reads out, or say both, not {reads!r}")
        fields = family.fields(files, rule, input_scale)
    files.check_unread()
    loaded = Crosscoder(**fields, notes=tuple(files.notes))
    return swapped(loaded) if swap else loaded
