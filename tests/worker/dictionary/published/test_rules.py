"""The activation rule of every configuration; containers of weights; swapped models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import LATENTS, WIDTH, assert_equal, float32, hub_tensors, planted, replication_tensors, write_hub
from safetensors.torch import save_file

from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import LargestOfToken
from crosscope_worker.dictionary.load import load_crosscoder

K = 4
TOP_K: list[dict[str, dict[str, Any]]] = [
    {"config.json": {"k": K}},
    {"trainer_config.json": {"trainer": {"k": K, "dict_class": "BatchTopKCrossCoder"}}},
    {"config.json": {"activation_dim": WIDTH, "top_k": K}, "hyperparams.json": {"act_fn": "topk"}},
    {"hyperparams.json": {"activation": "batchtopk", "k": K}},
    {"cfg.json": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}},
    {"model_cfg.yaml": {"activation_fn": {"classname": "TopkActivation", "cfg": {"k": K}}}},
    {"hparams.json": {"top_k": K}, "config.json": {"activation": "TopK"}},
]


def write_configs(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    for name, config in configs.items():
        (folder / name).write_text(json.dumps(config))  # JSON is YAML


def mean_l0(crosscoder: Crosscoder) -> float:
    x = torch.randn(200, 2 * WIDTH, generator=torch.Generator().manual_seed(3))
    return float((crosscoder.encode(x) > 0).double().sum(dim=1).mean())


@pytest.mark.parametrize("layout", ["hub", "replication"])
@pytest.mark.parametrize("configs", TOP_K, ids=" ".join)
def test_a_top_k_rule_counts_wherever_it_stands(tmp_path: Path, layout: str, configs: dict[str, dict[str, Any]]):
    if layout == "hub":
        save_file(hub_tensors(planted()), tmp_path / "model.safetensors")
        load = {}
    else:
        torch.save(replication_tensors(planted()), tmp_path / "cc_weights.pt")
        load = {"input_scale": (1.0, 1.0)} if "activation_dim" not in str(configs) else {}
    write_configs(tmp_path, configs)
    crosscoder = load_crosscoder(tmp_path, **load)
    assert (crosscoder.variant, crosscoder.keep) == ("topk", LargestOfToken(K))
    x = torch.randn(200, 2 * WIDTH, generator=torch.Generator().manual_seed(3))
    positive = (crosscoder.pre_activations(x) > 0).sum(dim=1)
    assert torch.equal((crosscoder.encode(x) > 0).sum(dim=1), positive.clamp(max=K))
    assert float(positive.double().mean()) > 2 * K, "ReLU alone would have kept more"


def test_hub_files_choose_by_scaled_activations(tmp_path: Path):
    p = planted()
    save_file(hub_tensors(p) | {"k": torch.tensor(K)}, tmp_path / "model.safetensors")
    write_configs(tmp_path, {"config.json": {"k": 100}})
    crosscoder = load_crosscoder(tmp_path)
    x = np.random.default_rng(1).standard_normal((30, 2, WIDTH))
    code = np.maximum(np.einsum("bmd,mdf->bf", x, p.enc) + p.b, 0)
    scaled = code * p.norms()
    code[scaled < np.sort(scaled, axis=1)[:, -K][:, None]] = 0
    assert np.abs(crosscoder.encode(float32(x)).numpy() - code).max() < 1e-5 * code.max()
    assert "The tensor says k 4; config.json says k 100, which is ignored." in crosscoder.notes


REFUSED: dict[str, tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]] = {
    "config.json says act_fn 'relu' and cfg.json says activation 'topk' contradict": (
        {},
        {"config.json": {"act_fn": "relu"}, "cfg.json": {"activation": "topk", "k": K}},
    ),
    "config.json says k 4 and hyperparams.json says k 5 contradict": (
        {},
        {"config.json": {"k": K}, "hyperparams.json": {"k": 5}},
    ),
    "config.json: act_fn 'softplus' is not known": ({}, {"config.json": {"act_fn": "softplus"}}),
    "hyperparams.json: act_fn 'gated' is not known": ({}, {"hyperparams.json": {"act_fn": "gated"}}),
    "but no configuration and no tensor says k": ({}, {"hyperparams.json": {"act_fn": "topk"}}),
    "k is 99, but there are 17 latents": ({}, {"config.json": {"k": 99}}),
    "config.json says k 'many', which is no number": ({}, {"config.json": {"k": "many"}}),
    "config.json says k True, which is no number": ({}, {"config.json": {"k": True}}),
    "ReLU keeps no k": ({}, {"config.json": {"act_fn": "relu", "k": K}}),
    "act_fn 'relu', which has no k": ({"k": torch.tensor(K)}, {"hyperparams.json": {"act_fn": "relu"}}),
    "no threshold for each latent": ({}, {"config.json": {"activation": "jump_relu"}}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_rules_that_are_refused(tmp_path: Path, message: str):
    tensors, configs = REFUSED[message]
    save_file(hub_tensors(planted()) | tensors, tmp_path / "model.safetensors")
    write_configs(tmp_path, configs)
    with pytest.raises(CrosscoderError, match=message):
        load_crosscoder(tmp_path)


def test_a_tensor_that_nobody_reads_must_be_finite_too(tmp_path: Path):
    masks = {"enc_mask": torch.ones(2, LATENTS), "dec_mask": torch.ones(LATENTS, 2)}
    masks["enc_mask"][0, 3] = torch.inf
    torch.save(replication_tensors(planted()) | masks, tmp_path / "model.pt")
    write_configs(tmp_path, {"config.json": {"k": K}})
    with pytest.raises(CrosscoderError, match="enc_mask holds values that are not finite"):
        load_crosscoder(tmp_path)
    statistics = {f"activation_{name}": torch.full((2, WIDTH), torch.nan) for name in ("mean", "std")}
    statistics |= {"target_rms": torch.tensor(torch.nan), "activation_global_scale": torch.tensor(torch.nan)}
    folder = write_hub(tmp_path / "hub", hub_tensors(planted()) | statistics)
    assert load_crosscoder(folder).input_mean is None
    statistics["activation_mean"][0, 1] = 0.5
    with pytest.raises(CrosscoderError, match="activation_mean is NaN in 11 of 12 values; NaN means off only"):
        load_crosscoder(write_hub(folder, hub_tensors(planted()) | statistics))


def test_an_assumed_relu_is_said(tmp_path: Path):
    save_file(hub_tensors(planted()), tmp_path / "model.safetensors")
    assert any("ReLU is assumed" in note for note in load_crosscoder(tmp_path).notes)
    write_configs(tmp_path, {"config.json": {"dict_class": "CrossCoder"}})
    assert load_crosscoder(tmp_path).notes == ()


def test_a_threshold_that_training_never_set_is_said(tmp_path: Path):
    tensors = hub_tensors(planted()) | {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    crosscoder = load_crosscoder(write_hub(tmp_path, tensors, dict_class="BatchTopKCrossCoder"))
    assert mean_l0(crosscoder) > K
    assert any("every positive code is kept" in note for note in crosscoder.notes)


# --- containers


def test_shards_with_an_index(tmp_path: Path):
    p = planted(thresholds=np.full(2, 3.0))
    tensors = hub_tensors(p) | {"k": torch.tensor(K), "threshold": torch.tensor(3.0)}
    names = sorted(tensors)
    for suffix, write in ((".safetensors", save_file), (".bin", torch.save)):
        folder = tmp_path / suffix.strip(".")
        folder.mkdir()
        stem = "model" if suffix == ".safetensors" else "pytorch_model"
        parts = {name: f"{stem}-0000{1 + i % 2}-of-00002{suffix}" for i, name in enumerate(names)}
        for part in set(parts.values()):
            write({name: tensors[name] for name in names if parts[name] == part}, folder / part)
        index = folder / f"{stem}{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
        assert_equal(load_crosscoder(folder), p)
        for weight_map, message in (
            (parts | {"more": parts[names[0]]}, "names the tensor more, which none"),
            (parts | {"more": "../a.safetensors"}, "which is no file of weights beside it"),
            (parts | {"more": "absent.safetensors"}, r"absent.safetensors is missing"),
            ({}, "has no weight_map"),
        ):
            index.write_text(json.dumps({"weight_map": weight_map}))
            with pytest.raises(CrosscoderError, match=message):
                load_crosscoder(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "sae"])
def test_checkpoints(tmp_path: Path, key: str, prefix: str):
    p = planted()
    weights = {f"{prefix}{name}": tensor for name, tensor in hub_tensors(p).items()}
    torch.save({key: weights, "optimizer": {"lr": 0.1}, "step": 3}, tmp_path / "pytorch_model.bin")
    torch.save({}, tmp_path / "training_args.bin")
    crosscoder = load_crosscoder(tmp_path)
    assert_equal(crosscoder, p)
    assert "pytorch_model.bin is a checkpoint: optimizer, step beside its weights were not read." in crosscoder.notes


def test_two_sets_of_weights_in_a_checkpoint(tmp_path: Path):
    torch.save({"model": hub_tensors(planted()), "sae": hub_tensors(planted())}, tmp_path / "a.pt")
    with pytest.raises(CrosscoderError, match="holds weights under sae and model"):
        load_crosscoder(tmp_path)


# --- which model is which


@pytest.mark.parametrize("normalisation", ["CROSSCODER", "DECOUPLED"])
def test_swapped_models(tmp_path: Path, normalisation: str):
    rng = np.random.default_rng(4)
    mean, std = rng.standard_normal((2, 2, WIDTH)).astype(np.float32)
    tensors = hub_tensors(planted()) | {
        "k": torch.tensor(K),
        "threshold": torch.tensor([1.5, 3.0] if normalisation == "DECOUPLED" else 2.0),
        "activation_mean": float32(mean),
        "activation_std": float32(std),
    }
    write_hub(tmp_path, tensors, code_normalization=normalisation)
    as_stored, other = load_crosscoder(tmp_path), load_crosscoder(tmp_path, swap=True)
    x = torch.randn(40, 2, WIDTH)
    code = as_stored.encode(x)
    torch.testing.assert_close(other.encode(x.flip(1)), code)
    torch.testing.assert_close(other.scaled(x.flip(1)), as_stored.scaled(x))
    x_hat = as_stored.decode(code).reshape(-1, 2, WIDTH)
    torch.testing.assert_close(other.decode(code).reshape(-1, 2, WIDTH), x_hat.flip(1))
    assert other.input_scale == as_stored.input_scale[::-1]


def test_given_scales_belong_to_base_and_chat_when_swapped(tmp_path: Path):
    torch.save(replication_tensors(planted()), tmp_path / "cc_weights.pt")
    as_stored = load_crosscoder(tmp_path, input_scale=(0.4, 0.25))
    other = load_crosscoder(tmp_path, input_scale=(0.25, 0.4), swap=True)
    torch.testing.assert_close(other.decoder(0), as_stored.decoder(1))
    torch.testing.assert_close(other.W_enc[:WIDTH], as_stored.W_enc[WIDTH:])


# --- decoupled codes of normalised inputs


@pytest.mark.parametrize("dict_class", ["BatchTopKCrossCoder", "CrossCoder"])
def test_decoupled_codes_are_normalised_twice_by_the_forks(tmp_path: Path, dict_class: str):
    rng = np.random.default_rng(6)
    mean, std = rng.standard_normal((2, 2, WIDTH)).astype(np.float32).astype(np.float64)
    p = planted(normalisation="DECOUPLED", thresholds=np.array([0.5, 0.8]))
    tensors = hub_tensors(p) | {"activation_mean": float32(mean), "activation_std": float32(std)}
    if dict_class == "BatchTopKCrossCoder":
        tensors |= {"k": torch.tensor(K), "threshold": float32(p.thresholds)}
    write_hub(tmp_path, tensors, code_normalization="DECOUPLED", dict_class=dict_class)
    crosscoder = load_crosscoder(tmp_path)
    scale = 1 / np.sqrt((std**2).sum(axis=1) + 1e-8)
    x = rng.standard_normal((50, 2, WIDTH)).astype(np.float32).astype(np.float64)
    y = (x - mean) * scale[:, None]
    is_twice = dict_class == "BatchTopKCrossCoder"
    y = (y - mean) * scale[:, None] if is_twice else y
    post = np.maximum(np.einsum("bmd,mdf->bf", y, p.enc) + p.b, 0)
    thresholds = p.thresholds if is_twice else np.full(2, -1.0)
    kept = post[:, None] * p.norms() > thresholds[:, None]
    code = post[:, None] * kept
    x_hat = (np.einsum("bmf,mfd->bmd", code, p.dec) + p.b_dec) / scale[:, None] + mean
    found = crosscoder.encode(float32(x))
    np.testing.assert_allclose(found.numpy(), code.max(axis=1), rtol=1e-4, atol=1e-5 * code.max())
    decoded = crosscoder.decode(found).numpy().reshape(50, 2, WIDTH)
    assert np.abs(decoded - x_hat).max() < 1e-5 * np.abs(x_hat).max()
    assert 0.1 < (code > 0).mean() < 0.9
