"""Every published layout, written by small writers, against float64 numpy; and files that are refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import (
    LATENTS,
    WIDTH,
    assert_equal,
    float32,
    hub_tensors,
    openmoss_tensors,
    planted,
    replication_tensors,
    write_hub,
)
from safetensors.torch import save_file

from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.published.files import Files
from crosscope_worker.dictionary.published.replication import public_scales

IDS = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}


def sparsifier(thresholds, k=5):
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": float32(thresholds)}


def normaliser(seed=3, target=2.0):
    rng = np.random.default_rng(seed)
    mean, std = (rng.standard_normal((2, WIDTH)).astype(np.float32).astype(np.float64) for _ in range(2))
    scale = target / np.sqrt((std**2).sum(axis=1) + 1e-8)
    tensors = {"target_rms": float32(target), "activation_mean": float32(mean), "activation_std": float32(std)}
    return tensors, {"mean": mean, "scale": scale}


def test_the_four_tensors_of_the_l1_crosscoder(tmp_path: Path):
    p = planted()
    crosscoder = load_crosscoder(write_hub(tmp_path, hub_tensors(p)))
    assert_equal(crosscoder, p)
    assert (crosscoder.variant, crosscoder.d_model, crosscoder.num_latents) == ("l1", (WIDTH, WIDTH), LATENTS)
    assert_equal(load_crosscoder(tmp_path / "model.safetensors"), p)


@pytest.mark.parametrize("name", ["CROSSCODER", "SAE", "MIXED", "NONE"])
def test_batch_topk_with_each_normalisation(tmp_path: Path, name: str):
    p = planted(normalisation=name, thresholds=np.full(2, 3.5))
    tensors = hub_tensors(p) | sparsifier(3.5) | {"code_normalization_id": torch.tensor(IDS[name])}
    crosscoder = load_crosscoder(write_hub(tmp_path, tensors, k=100, dict_class="BatchTopKCrossCoder"))
    assert_equal(crosscoder, p)
    assert crosscoder.variant == "batch_topk"
    x = torch.randn(9, 2 * WIDTH)
    torch.testing.assert_close(crosscoder.encode_sparse(x).dense(LATENTS), crosscoder.encode(x))


def test_decoupled_models_keep_different_codes(tmp_path: Path):
    p = planted(normalisation="DECOUPLED", thresholds=np.array([1.5, 4.0]))
    tensors = hub_tensors(p) | sparsifier([1.5, 4.0]) | {"code_normalization_id": torch.tensor(5)}
    crosscoder = load_crosscoder(write_hub(tmp_path, tensors))
    assert_equal(crosscoder, p)
    x = torch.randn(9, 2 * WIDTH)
    code, keeps = crosscoder.encode_sparse(x), crosscoder.sparsifier()
    torch.testing.assert_close(code.dense(LATENTS), crosscoder.encode(x))
    kept_by = keeps.kept_by(code)
    assert not torch.equal(*kept_by)
    torch.testing.assert_close(crosscoder.decode_sparse(code, kept_by), crosscoder.decode(crosscoder.encode(x)))
    scaled = code._replace(values=keeps.scaled_entries(code)).dense(LATENTS)
    torch.testing.assert_close(scaled, crosscoder.scaled(x))


def test_the_string_in_the_config_wins_over_the_id(tmp_path: Path):
    p = planted(normalisation="SAE", thresholds=np.full(2, 3.0))
    tensors = hub_tensors(p) | sparsifier(3.0) | {"code_normalization_id": torch.tensor(1)}
    assert_equal(load_crosscoder(write_hub(tmp_path, tensors, code_normalization="SAE")), p)


@pytest.mark.parametrize("stored", ["none", "per model", "one"])
def test_input_normaliser(tmp_path: Path, stored: str):
    tensors, options = normaliser()
    if stored == "per model":
        tensors["activation_global_scale"] = float32(options["scale"])
    if stored == "one":
        tensors["activation_global_scale"] = float32(0.25)
        options["scale"] = np.full(2, 0.25)
    p = planted(**options)
    assert_equal(load_crosscoder(write_hub(tmp_path, hub_tensors(p) | tensors)), p)


def test_nan_means_no_normaliser(tmp_path: Path):
    nan = torch.full((2, WIDTH), torch.nan)
    off = {"activation_mean": nan, "activation_std": nan.clone(), "activation_global_scale": torch.ones(2)}
    p = planted()
    crosscoder = load_crosscoder(write_hub(tmp_path, hub_tensors(p) | off | {"target_rms": torch.tensor(3.0)}))
    assert_equal(crosscoder, p)
    assert crosscoder.input_mean is None


def test_a_compiled_training_folder_with_a_bias_per_model(tmp_path: Path):
    p = planted(thresholds=np.full(2, 3.0))
    tensors = hub_tensors(p) | sparsifier(3.0) | {"encoder.bias": float32(np.stack([0.5 * p.b, 0.5 * p.b]))}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}
    torch.save({}, tmp_path / "checkpoint_10.pt")
    torch.save(compiled, tmp_path / "model_final.pt")
    trainer = {"dict_class": "BatchTopKCrossCoder", "k": 100}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    assert_equal(load_crosscoder(tmp_path), p)
    assert_equal(load_crosscoder(tmp_path / "model_final.pt"), p)


def test_the_trainers_normalisation_counts_if_nothing_else_says_one(tmp_path: Path):
    p = planted(normalisation="SAE", thresholds=np.full(2, 3.0))
    folder = write_hub(tmp_path, hub_tensors(p) | sparsifier(3.0))
    trainer = {"dict_class": "BatchTopKCrossCoder", "code_normalization": "SAE"}
    (tmp_path / "trainer_config.json").write_text(json.dumps({"trainer": trainer}))
    assert_equal(load_crosscoder(folder), p)
    (tmp_path / "trainer_config.json").write_text(json.dumps({"trainer": trainer | {"dict_class": "CrossCoder"}}))
    with pytest.raises(CrosscoderError, match="dict_class 'CrossCoder', which has no k and no threshold"):
        load_crosscoder(folder)


@pytest.mark.parametrize("names", [("cc_weights.pt", "cfg.json"), ("7.pt", "7_cfg.json")])
def test_scales_that_the_file_does_not_hold(tmp_path: Path, names: tuple[str, str]):
    p = planted(scale=np.array([0.25, 0.4]))
    torch.save(replication_tensors(p), tmp_path / names[0])
    (tmp_path / names[1]).write_text(json.dumps({"model_name": "other", "dict_size": LATENTS}))
    with pytest.raises(CrosscoderError, match=r"pass them as input_scale=\(base, chat\)"):
        load_crosscoder(tmp_path)
    crosscoder = load_crosscoder(tmp_path, input_scale=(0.25, 0.4))
    assert crosscoder.input_scale == (1.0, 1.0)
    p.dec, p.b_dec, p.enc = p.dec / p.scale[:, None, None], p.b_dec / p.scale[:, None], p.enc * p.scale[:, None, None]
    p.scale = np.ones(2)
    assert_equal(crosscoder, p)


def test_the_public_file_is_known_by_its_cfg(tmp_path: Path):
    cfg = {"model_name": "gemma-2-2b", "hook_point": "blocks.14.hook_resid_pre", "site": "resid_pre"}

    def scales(**config: object) -> tuple[float, float] | None:
        return public_scales(Files(tmp_path / "cc_weights.pt", {}, {"cfg.json": config}))

    assert scales(**cfg, d_in=2304, dict_size=16384) == (0.2758961493232058, 0.24422852496546169)
    assert scales(**cfg, dict_size=32768) is None
    assert scales(**cfg | {"hook_point": "blocks.13.hook_resid_pre"}) is None
    assert scales(hook_point="blocks.14.hook_resid_pre") is None
    torch.save(replication_tensors(planted()), tmp_path / "cc_weights.pt")
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    by_cfg, by_hand = load_crosscoder(tmp_path), load_crosscoder(tmp_path, input_scale=scales(**cfg))
    torch.testing.assert_close(by_cfg.W_dec, by_hand.W_dec, rtol=0, atol=0)


def test_openmoss_relu_and_data_set_norms(tmp_path: Path):
    p = planted()
    save_file(openmoss_tensors(p), tmp_path / "sae_weights.safetensors")
    config = {"act_fn": "relu", "d_model": WIDTH, "norm_activation": "inference"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_equal(load_crosscoder(tmp_path), p)
    config |= {"norm_activation": "dataset-wise", "hook_points": ["a", "b"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CrosscoderError, match="average norms, which the file does not hold"):
        load_crosscoder(tmp_path)
    norms = {f"dataset_average_activation_norm.{name}": torch.tensor(n) for name, n in (("a", 3.0), ("b", 5.0))}
    save_file(openmoss_tensors(p) | norms, tmp_path / "sae_weights.safetensors")
    p.scale = np.sqrt(WIDTH) / np.array([3.0, 5.0])
    assert_equal(load_crosscoder(tmp_path), p)


def test_openmoss_jumprelu_is_a_decoupled_code(tmp_path: Path):
    theta = np.linspace(1.0, 4.0, LATENTS)
    p = planted(normalisation="DECOUPLED", thresholds=np.stack([theta, theta]))
    log = {"activation_function.log_jumprelu_threshold": float32(np.log(theta))}
    save_file(openmoss_tensors(p) | log, tmp_path / "sae_weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"act_fn": "jumprelu"}))
    assert_equal(load_crosscoder(tmp_path), p)


OPENMOSS_RULES = {
    "topk": "act_fn 'topk', but no configuration and no tensor says k",
    "batchtopk": "act_fn 'batchtopk', but no configuration and no tensor says k",
    "jumprelu": "act_fn 'jumprelu', without thresholds; known are relu",
    "layertopk": "act_fn 'layertopk' is not known; known activation rules are relu, jumprelu",
    None: "no configuration says an activation rule, without thresholds; known are relu",
}


@pytest.mark.parametrize("rule", OPENMOSS_RULES)
def test_openmoss_with_an_unknown_rule(tmp_path: Path, rule: str | None):
    save_file(openmoss_tensors(planted()), tmp_path / "sae_weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"act_fn": rule}))
    with pytest.raises(CrosscoderError, match=OPENMOSS_RULES[rule]):
        load_crosscoder(tmp_path)


REFUSED = {
    "k is 18, but there are 17 latents": ({**sparsifier(1.0, k=18)}, {}),
    "k is 0": ({**sparsifier(1.0, k=0)}, {}),
    "code_normalization_id is 9": ({"code_normalization_id": torch.tensor(9)}, {}),
    "code_normalization is 'LOUD'": ({}, {"code_normalization": "LOUD"}),
    "a DECOUPLED code has 2 thresholds": (sparsifier(1.0), {"code_normalization": "DECOUPLED"}),
    "only a DECOUPLED code has one a model": (sparsifier([1.0, 2.0]), {}),
    "unknown tensors mask": ({"mask": torch.ones(3)}, {}),
    "config.json says dict_size 99": ({}, {"dict_size": 99}),
    "dict_class 'Sparse' is not known": ({}, {"dict_class": "Sparse"}),
    "dict_class 'CrossCoder', which has no k": (sparsifier(1.0), {"dict_class": "CrossCoder"}),
    "keep_relative_variance false": ({}, {"keep_relative_variance": False}),
    "only one of activation_mean": ({"activation_mean": torch.ones(2, WIDTH)}, {}),
    "activation_global_scale is": (normaliser()[0] | {"activation_global_scale": torch.tensor([5.0, 5.0])}, {}),
    "decoder.bias has shape": ({"decoder.bias": torch.ones(WIDTH)}, {}),
    "holds values that are not finite": ({"encoder.bias": torch.full((LATENTS,), torch.inf)}, {}),
    "of 3 models or layers": ({"encoder.weight": torch.ones(3, WIDTH, LATENTS)}, {}),
    "only .* is known": ({}, {"code_normalization": "MIXED", "code_normalization_alpha_cc": 0.5}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_contradictions_are_named(tmp_path: Path, message: str):
    tensors, config = REFUSED[message]
    write_hub(tmp_path, hub_tensors(planted()) | tensors, **config)
    with pytest.raises(CrosscoderError, match=message):
        load_crosscoder(tmp_path)


def test_unknown_layouts_and_paths(tmp_path: Path):
    with pytest.raises(CrosscoderError, match="nowhere is missing"):
        load_crosscoder(tmp_path / "nowhere")
    save_file({"encoder.kernel": torch.ones(3, 4), "decoder.weight": torch.ones(4, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(CrosscoderError, match=r"unknown layout: it holds decoder.weight \(4, 3\)"):
        load_crosscoder(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CrosscoderError, match=r"several files of weights \(a.safetensors, b.safetensors\)"):
        load_crosscoder(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CrosscoderError, match="neither a folder nor a file of"):
        load_crosscoder(tmp_path / "notes.txt")
    torch.save({"state_dict": {}, "step": 3}, tmp_path / "c.pt")
    with pytest.raises(CrosscoderError, match="holds state_dict, step beside or instead of tensors"):
        load_crosscoder(tmp_path / "c.pt")
    torch.save([torch.ones(2)], tmp_path / "c.pt")
    with pytest.raises(CrosscoderError, match="holds a list, not tensors by name"):
        load_crosscoder(tmp_path / "c.pt")
    write_hub(tmp_path, hub_tensors(planted()))
    with pytest.raises(CrosscoderError, match="leave input_scale out"):
        load_crosscoder(tmp_path, input_scale=(1.0, 2.0))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CrosscoderError, match=r"config.json is not JSON"):
        load_crosscoder(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "ae.pt"])
@pytest.mark.parametrize("length", [0, 1, 100, -9])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str, length: int):
    path = tmp_path / name
    tensors = hub_tensors(planted())
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CrosscoderError, match=rf"{name}.*cut short"):
        load_crosscoder(tmp_path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, legacy: bool):
    trace, path = tmp_path / "ran", tmp_path / "ae.pt"
    if legacy:
        path.write_bytes(pickle.dumps({"encoder.weight": Bomb(trace)}))
    else:
        torch.save(hub_tensors(planted()) | {"encoder.extra": Bomb(trace)}, path)
    with pytest.raises(CrosscoderError, match="it was not opened, since loading it could run code"):
        load_crosscoder(tmp_path)
    assert not trace.exists()
    if legacy:
        pickle.loads(path.read_bytes())
        assert trace.exists(), "the bomb works"
