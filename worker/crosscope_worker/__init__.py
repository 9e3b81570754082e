"""The worker: model pairs, crosscoders, training, analysis and inference."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosscope_worker.dictionary.crosscoder import Crosscoder
    from crosscope_worker.dictionary.load import load_crosscoder

__all__ = ["Crosscoder", "load_crosscoder"]


def __getattr__(name: str) -> Any:
    """Loads a public name, and torch with it, when it is first asked for."""
    if name == "Crosscoder":
        from crosscope_worker.dictionary.crosscoder import Crosscoder

        return Crosscoder
    if name == "load_crosscoder":
        from crosscope_worker.dictionary.load import load_crosscoder

        return load_crosscoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
