"""What sets the dictionaries apart in training (math §2): a file each, named as recipes name the variant.

How to write one: docs/variants.md, and the hooks in `variant.Variant`.
"""

from importlib import import_module

from crosscope_proto.dictionaries import DictionarySpec
from crosscope_worker.training.variants.variant import Variant

__all__ = ["Variant", "variant_of"]


def variant_of(spec: DictionarySpec, d_model: tuple[int, int]) -> Variant:
    """How a dictionary is trained on models of these widths: VARIANT of the file that is named like it."""
    made: Variant = import_module(f"{__name__}.{spec.variant}").VARIANT(spec, d_model)
    return made
