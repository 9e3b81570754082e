"""Weights that differ from the published ones are refused with a sentence, and never used."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_crosscoders import make_crosscoder, make_manifest
from safetensors.torch import load_file, save_file

from crosscope_worker.dictionary import version as module
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.keep import AboveModelThresholds, AboveThreshold, AboveThresholds
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.disk import sha256


def write(folder: Path, hashed: bool = True, **options: object) -> Path:
    crosscoder = make_crosscoder(keep=AboveThreshold(1.5), **options)
    manifest = make_manifest(crosscoder)
    crosscoder.save(folder, manifest)
    weights = folder / "crosscoder.safetensors"
    if hashed:
        crosscoder.save(folder, dataclasses.replace(manifest, hashes={weights.name: sha256(weights)}))
    return weights


def test_200_flipped_bits_are_each_seen(tmp_path: Path):
    weights = write(tmp_path)
    whole = np.frombuffer(weights.read_bytes(), np.uint8)
    bits = np.random.default_rng(0).choice(8 * len(whole), 200, replace=False)
    for bit in bits:
        damaged = whole.copy()
        damaged[bit // 8] ^= 1 << (bit % 8)
        weights.write_bytes(damaged.tobytes())
        with pytest.raises(CrosscoderError, match=r"crosscoder\.safetensors is damaged or was changed: its SHA-256 is"):
            load_crosscoder(tmp_path)
    weights.write_bytes(whole.tobytes())
    assert load_crosscoder(tmp_path).keep == AboveThreshold(1.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_weights_without_a_hash_must_be_finite(tmp_path: Path, name: str, value: float):
    weights = write(tmp_path, hashed=False)
    tensors = load_file(weights)
    tensors[name].view(-1)[3] = value
    save_file(tensors, weights)
    with pytest.raises(CrosscoderError, match=rf"is damaged: {name} holds values that are not finite"):
        load_crosscoder(tmp_path)


@pytest.mark.parametrize("name", ["latent_thresholds", "model_thresholds", "input_mean"])
def test_thresholds_and_means_must_be_finite_too(tmp_path: Path, name: str):
    options = {
        "latent_thresholds": {"keep": AboveThresholds(torch.full((11,), torch.nan))},
        "model_thresholds": {
            "keep": AboveModelThresholds(torch.full((2, 11), torch.nan)),
            "code_normalisation": "decoupled",
        },
        "input_mean": {"input_mean": torch.full((8,), torch.nan)},
    }
    crosscoder = make_crosscoder(**options[name])
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    with pytest.raises(CrosscoderError, match=rf"is damaged: {name} holds values"):
        load_crosscoder(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_scale": [float("nan"), 1.0]}, "input_scale: must be two positive, finite numbers, but is .nan, 1.0"),
        ({"input_scale": [1.0, 0.0]}, "input_scale: must be two positive"),
        ({"input_scale": [1.0, float("inf")]}, "input_scale: must be two positive"),
        ({"input_scale": [-1.0, 1.0]}, "input_scale: must be two positive"),
        ({"threshold": float("nan")}, "threshold: must be a finite number or null, but is nan"),
        ({"threshold": float("inf")}, "threshold: must be a finite number"),
        ({"input_scale": [1.0, 1.0, 1.0]}, "input_scale: Tuple should have at most 2 items"),
        ({"input_scale": ["a", 1.0]}, "input_scale.0: Input should be a valid number"),
        ({"threshold": "high"}, "threshold: Input should be a valid number"),
        ({"token_k": 2.5, "threshold": None}, "token_k: Input should be a valid integer"),
        ({"notes": 3}, "notes: Input should be a valid array"),
        ({"token_k": 0, "threshold": None}, "token_k: must be 1 to num_latents"),
    ],
)
def test_a_manifest_with_impossible_numbers(tmp_path: Path, fields: dict[str, object], message: str):
    write(tmp_path)
    path = tmp_path / "crosscoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(CrosscoderError, match=message):
        load_crosscoder(tmp_path)


def test_a_long_check_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path)
    told: list[str] = []
    load_crosscoder(tmp_path, tell=told.append)
    assert told == []
    monkeypatch.setattr(module, "_SLOW_BYTES", 100)
    load_crosscoder(tmp_path, tell=told.append)
    assert told == ["checking the 0.0 GB of crosscoder.safetensors against their hash"]
