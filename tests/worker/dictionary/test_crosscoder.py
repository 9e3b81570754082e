"""The crosscoder's formulas against float64 numpy, and its files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_crosscoders import make_crosscoder, make_manifest
from safetensors.torch import save_file

from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError, code_norms, relative_norms
from crosscope_worker.dictionary.keep import ALL_POSITIVE, AboveModelThresholds, AboveThreshold, AboveThresholds
from crosscope_worker.dictionary.load import load_crosscoder


@pytest.mark.parametrize("normalisation", ["crosscoder", "sae", "mixed", "none"])
@pytest.mark.parametrize("threshold", [None, 4.0])
def test_encode_and_decode_equal_float64_numpy(normalisation: str, threshold: float | None):
    crosscoder = make_crosscoder(
        code_normalisation=normalisation,
        keep=ALL_POSITIVE if threshold is None else AboveThreshold(threshold),
        input_scale=(0.5, 2.0),
    )
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    scale = np.array([0.5] * 3 + [2.0] * 5)
    weights = {name: getattr(crosscoder, name).double().numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    code = np.maximum(x.double().numpy() * scale @ weights["W_enc"] + weights["b_enc"], 0)
    base, chat = (np.linalg.norm(rows, axis=1) for rows in (weights["W_dec"][:, :3], weights["W_dec"][:, 3:]))
    sae = np.sqrt(base**2 + chat**2)
    norms = {"crosscoder": base + chat, "sae": sae, "mixed": sae + 0.1 * (base + chat), "none": np.ones(11)}
    n = norms[normalisation]
    if threshold is not None:
        code = code * (code * n > threshold)
    x_hat = (code @ weights["W_dec"] + weights["b_dec"]) / scale
    np.testing.assert_allclose(crosscoder.encode(x), code, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(crosscoder.scaled(x), code * n, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(crosscoder.decode(crosscoder.encode(x)), x_hat, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(crosscoder.encode_sparse(x).dense(11), crosscoder.encode(x))
    assert 0 < np.count_nonzero(code) < code.size


def test_relative_norm_by_hand():
    crosscoder = make_crosscoder(d_model=(2, 2), latents=3)
    crosscoder.W_dec = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    assert relative_norms(crosscoder).tolist() == [0.0, 0.25, 1.0]


def test_a_model_axis_reads_like_the_axis_both():
    crosscoder = make_crosscoder(d_model=(4, 4))
    x = torch.randn(5, 2, 4)
    torch.testing.assert_close(crosscoder.encode(x), crosscoder.encode(x.reshape(5, 8)))


def test_saved_crosscoder_loads_bit_for_bit(tmp_path: Path):
    crosscoder = make_crosscoder(keep=AboveThreshold(1.5), input_scale=(0.25, 0.75))
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    loaded = load_crosscoder(tmp_path)
    for field in dataclasses.fields(Crosscoder):
        found, expected = getattr(loaded, field.name), getattr(crosscoder, field.name)
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected, field.name
    assert loaded.W_enc.T.is_contiguous()


def test_broken_files_are_named(tmp_path: Path):
    crosscoder = make_crosscoder()
    with pytest.raises(CrosscoderError, match=r"crosscoder\.json is missing"):
        load_crosscoder(tmp_path)
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    weights = tmp_path / "crosscoder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(CrosscoderError, match=r"crosscoder\.safetensors cannot be read"):
        load_crosscoder(tmp_path)
    weights.write_bytes(whole)
    manifest = tmp_path / "crosscoder.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"d_model": [4, 5]}))
    with pytest.raises(CrosscoderError, match="adds up to"):
        load_crosscoder(tmp_path)
    manifest.write_text(json.dumps(document | {"schema_version": 99}))
    with pytest.raises(CrosscoderError, match="schema version 99"):
        load_crosscoder(tmp_path)
    del document["pair"]
    manifest.write_text(json.dumps(document))
    with pytest.raises(CrosscoderError, match="is missing"):
        load_crosscoder(tmp_path)


CONTRADICTIONS: dict[str, dict[str, object]] = {
    r"unknown code normalisation 'loud'; known are crosscoder, sae": {"code_normalisation": "loud"},
    r"b_enc has shape \(3,\), but W_enc \(8, 11\) asks for \(11,\)": {"b_enc": torch.zeros(3)},
    r"W_dec has shape \(11, 3\), but": {"W_dec": torch.zeros(11, 3)},
    r"b_dec has shape \(9,\), but": {"b_dec": torch.zeros(9)},
    r"W_enc reads 8 values a token, but d_model \(3, 4\) adds up to 7": {"d_model": (3, 4)},
    r"input_mean has shape \(7,\), not \(8,\)": {"input_mean": torch.zeros(7)},
    "is crosscoder, and it has thresholds for each model": {"keep": AboveModelThresholds(torch.zeros(2, 11))},
    "a decoupled code, and only that, has a rule for each model": {"code_normalisation": "decoupled"},
    r"model_thresholds has shape \(2, 3\), not \(2, 11\)": {
        "code_normalisation": "decoupled",
        "keep": AboveModelThresholds(torch.zeros(2, 3)),
    },
    r"latent_thresholds has shape \(4,\), not \(11,\)": {"keep": AboveThresholds(torch.zeros(4))},
    "threshold must be a finite number, not inf": {"keep": AboveThreshold(float("inf"))},
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_parts_that_contradict_each_other_are_named(message: str):
    with pytest.raises(CrosscoderError, match=message):
        dataclasses.replace(make_crosscoder(), **CONTRADICTIONS[message])


def test_a_file_without_a_tensor_is_named(tmp_path: Path):
    crosscoder = make_crosscoder()
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    save_file({"W_enc": torch.zeros(8, 11), "noise": torch.zeros(1)}, tmp_path / "crosscoder.safetensors")
    with pytest.raises(CrosscoderError, match=r"crosscoder\.safetensors has no tensor b_enc; it holds W_enc, noise"):
        load_crosscoder(tmp_path)
    (tmp_path / "crosscoder.safetensors").unlink()
    with pytest.raises(CrosscoderError, match=r"crosscoder\.safetensors is missing"):
        load_crosscoder(tmp_path)


def test_a_decoupled_code_by_hand():
    """Rows (3 | 1) and (1 | 4), both read 2; base keeps above 4, chat above 3.

    Scaled by base's norms they are 6 and 2, by chat's 2 and 8: base decodes the first, chat the second.
    """
    crosscoder = Crosscoder(
        W_enc=torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
        b_enc=torch.zeros(2),
        W_dec=torch.tensor([[3.0, 1.0], [1.0, 4.0]]),
        b_dec=torch.tensor([0.5, -0.5]),
        d_model=(1, 1),
        variant="batch_topk",
        code_normalisation="decoupled",
        keep=AboveModelThresholds(torch.tensor([[4.0, 4.0], [3.0, 3.0]])),
    )
    x = torch.tensor([[2.0, 9.0]])
    code = crosscoder.encode(x)
    assert code.tolist() == [[2.0, 2.0]]
    assert crosscoder.scaled(x).tolist() == [[6.0, 8.0]]
    assert crosscoder.decode(code).tolist() == [[6.5, 7.5]]


def test_code_norms_by_hand():
    """Rows (3, 4 | 0, 12): norms 5 and 12, together 13."""
    row = torch.tensor([[3.0, 4.0, 0.0, 12.0]])
    found = {name: float(code_norms(row, (2, 2), name)) for name in ("crosscoder", "sae", "mixed", "none")}
    assert found == pytest.approx({"crosscoder": 17, "sae": 13, "mixed": 13 + 1.7, "none": 1})


def test_inputs_are_centred_and_scaled_by_hand():
    """Mean (1 | 2) and scales 2 and 0.5: (3 | 6) is read as (4 | 2), and (4 | 2) is decoded to (3 | 6)."""
    crosscoder = Crosscoder(
        W_enc=torch.eye(2),
        b_enc=torch.zeros(2),
        W_dec=torch.eye(2),
        b_dec=torch.zeros(2),
        d_model=(1, 1),
        variant="l1",
        input_scale=(2.0, 0.5),
        input_mean=torch.tensor([1.0, 2.0]),
    )
    x = torch.tensor([[3.0, 6.0]])
    assert crosscoder.encode(x).tolist() == [[4.0, 2.0]]
    assert crosscoder.decode(crosscoder.encode(x)).tolist() == [[3.0, 6.0]]
