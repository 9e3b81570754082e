"""The worker: model pairs, crosscoders, training, analysis and inference."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from crosscope_worker.dictionary.crosscoder import Crosscoder
    from crosscope_worker.dictionary.load import load_crosscoder

__all__ = ["Crosscoder", "load_crosscoder"]

# A public name, and torch with it, is loaded when it is first asked for.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"dictionary.crosscoder": ["Crosscoder"], "dictionary.load": ["load_crosscoder"]}
)
