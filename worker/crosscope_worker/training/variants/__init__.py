"""The variants of training (math §2): one file each, with the name that recipes give the variant.

How to write one: docs/variants.md, and the hooks in `variant.Variant`.
"""

from importlib import import_module

from crosscope_proto.dictionaries import DictionarySpec
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.training.variants.variant import Variant

__all__ = ["Variant", "variant_of"]


def variant_of(spec: DictionarySpec, d_model: tuple[int, int], ranks: Ranks = ALONE) -> Variant:
    """The training of a dictionary on models of these widths: VARIANT of the file with the variant's name."""
    made: Variant = import_module(f"{__name__}.{spec.variant}").VARIANT(spec, d_model, ranks)
    return made
