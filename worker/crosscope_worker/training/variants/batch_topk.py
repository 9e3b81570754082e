"""BatchTopK: the k · batch largest scaled activations of a batch (math §2)."""

from crosscope_proto import dictionaries
from crosscope_worker.training.variants.budgeted import Budgeted


class BatchTopK(Budgeted[dictionaries.BatchTopK]):
    """One budget for all latents."""


VARIANT = BatchTopK
