"""Crosscoders of Gemma Scope 2: four layers of one model. Refused by name; its dictionaries of one layer load."""

from pathlib import Path

from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.published.configs import read_config

_PARTS = "params_layer_*.safetensors"


def check(path: Path) -> None:
    """Raises CrosscoderError for a crosscoder of several layers of one model, a folder or one of its files."""
    folder = path if path.is_dir() else path.parent
    is_part = path.is_dir() or path.match(_PARTS)
    if not is_part or not (parts := sorted(folder.glob(_PARTS))):
        return
    config = read_config(folder / "config.json") if (folder / "config.json").is_file() else {}
    model = config.get("model_name", "one model")
    raise CrosscoderError(
        f"{folder} is a Gemma Scope 2 crosscoder: it reads {len(parts)} layers of {model}. Only crosscoders of "
        "one layer of two models can be read"
    )
