"""The configurations beside a published crosscoder's weights, JSON or YAML, and what they say under a key.

All of them are read. So a rule that only one of them states counts, and a contradiction between two is found. Knows no
family. YAML is read without aliases and without tags that make objects.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from crosscope_worker.dictionary.crosscoder import CrosscoderError

Config = dict[str, Any]
_CONFIGS = (
    "config.json",
    "trainer_config.json",
    "cfg.json",
    "hyperparams.json",
    "hparams.json",
    "sae_config.json",
    "runner_cfg.json",
    "model_cfg.yaml",
    "config.yaml",
    "cfg.yaml",
)
_SECTIONS = ("trainer", "cfg", "config", "sae", "crosscoder", "activation_fn", "activation_fn_kwargs")
"""Names of objects inside a configuration that are searched too."""
_MAX_DEPTH = 4
_MAX_BYTES = 16 << 20
_MAX_YAML_BYTES = 1 << 20


@dataclass(frozen=True)
class Said:
    """A value and where it stands; as a string, the beginning of a sentence."""

    file: str
    key: str
    """With the sections that it stands in, for instance "trainer.k"."""
    value: Any

    def __str__(self) -> str:
        return f"{self.file} says {self.key} {self.value!r}"


def read_configs(weights: Path) -> dict[str, Config]:
    """Every known configuration in the folder of `weights`, by file name; `{stem}_cfg.json` counts as cfg.json.

    Raises CrosscoderError for one that cannot be read.
    """
    folder = weights.parent
    found = {name: read_config(folder / name) for name in _CONFIGS if (folder / name).is_file()}
    if (own := weights.with_name(f"{weights.stem}_cfg.json")).is_file():
        found["cfg.json"] = read_config(own)
    return found


def read_config(path: Path) -> Config:
    """A JSON or YAML object. Raises CrosscoderError when it is too large, cannot be parsed, or is no object."""
    is_yaml = path.suffix in (".yaml", ".yml")
    limit = _MAX_YAML_BYTES if is_yaml else _MAX_BYTES
    if path.stat().st_size > limit:
        raise CrosscoderError(f"{path} is larger than {limit >> 20} MiB, too much for a configuration")
    kind = "YAML" if is_yaml else "JSON"
    try:
        text = path.read_text(encoding="utf-8")
        document = _parse_yaml(path, text) if is_yaml else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, CrosscoderError):
            raise
        raise CrosscoderError(f"{path} is not {kind}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(document, dict):
        raise CrosscoderError(f"{path} does not hold a {kind} object")
    return cast("Config", document)


def _parse_yaml(path: Path, text: str) -> object:
    # A few lines of aliases of aliases make gigabytes; no configuration needs one.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise CrosscoderError(f"{path} has YAML aliases, which are not followed; write the values out")
    return yaml.safe_load(text)


def said(configs: Mapping[str, Config], keys: tuple[str, ...]) -> list[Said]:
    """What `configs` say under `keys`, by file and key; null says nothing."""
    found = (each for file, config in configs.items() for each in _entries(file, config, ""))
    return [each for each in found if each.key.rpartition(".")[2] in keys and each.value is not None]


def _entries(file: str, config: Config, prefix: str) -> Iterator[Said]:
    for key, value in config.items():
        yield Said(file, f"{prefix}{key}", value)
        if key in _SECTIONS and isinstance(value, dict) and prefix.count(".") < _MAX_DEPTH:
            yield from _entries(file, cast("Config", value), f"{prefix}{key}.")
