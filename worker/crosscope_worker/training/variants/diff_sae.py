"""A sparse autoencoder of the difference, chat less base (math §2)."""

from typing import ClassVar

from crosscope_proto import dictionaries
from crosscope_worker.training.variants.budgeted import Budgeted


class DiffSae(Budgeted[dictionaries.DiffSae]):
    """BatchTopK; its spec says that it reads the difference."""

    equal_widths: ClassVar[bool] = True


VARIANT = DiffSae
