"""L1: a penalty on the sum of scaled activations (math §2)."""

from crosscope_proto import dictionaries
from crosscope_worker.training.variants.penalised import Penalised


class L1(Penalised[dictionaries.L1]):
    """The same penalty for all latents."""


VARIANT = L1
