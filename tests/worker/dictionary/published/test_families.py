"""Files of 2026 against forwards in float64 numpy, written from their formulas; and files that are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import LATENTS, WIDTH, Array, float32, openmoss_tensors, planted, replication_tensors
from safetensors.torch import save_file

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.load import load_crosscoder

K = 4
Tensors = dict[str, torch.Tensor]


def inputs(batch: int = 60) -> Array:
    """[batch, model, d] whose values float32 holds."""
    return np.random.default_rng(99).standard_normal((batch, 2, WIDTH)).astype(np.float32).astype(np.float64)


def largest(values: Array, k: int) -> Array:
    """Where the k largest positive values of each row are."""
    order = np.argsort(-values, axis=-1, kind="stable")
    mask = np.zeros_like(values, dtype=bool)
    np.put_along_axis(mask, order[..., :k], True, axis=-1)
    return mask & (values > 0)


def numbers(tensors: Tensors) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def assert_near(found: torch.Tensor, expected: Array) -> None:
    assert np.abs(found.double().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def assert_forward(crosscoder: Crosscoder, code: Array, x_hat: Array, l0: float | None = None) -> None:
    """Code and reconstruction of `inputs()` are those of the family's formulas, the sparse code's too."""
    x = float32(inputs())
    found = crosscoder.encode(x)
    assert_near(found, code)
    np.testing.assert_array_equal(found.numpy() > 0, code > 0)
    assert_near(crosscoder.decode(found), x_hat.reshape(len(x), -1))
    sparse = crosscoder.encode_sparse(x)
    torch.testing.assert_close(sparse.dense(crosscoder.num_latents), found)
    kept_by = crosscoder.sparsifier().kept_by(sparse)
    scale = torch.tensor(crosscoder.input_scale).repeat_interleave(WIDTH)
    mean = 0.0 if crosscoder.input_mean is None else crosscoder.input_mean
    torch.testing.assert_close(
        crosscoder.decode_sparse(sparse, kept_by) / scale + mean, crosscoder.decode(found), rtol=1e-4, atol=1e-5
    )
    if l0 is not None:
        assert float((found > 0).double().sum(dim=1).mean()) == l0


def write(folder: Path, tensors: Tensors, weights: str = "model.pt", **configs: dict[str, Any]) -> Path:
    """`configs` by the stem of their JSON file."""
    folder.mkdir(exist_ok=True)
    path = folder / weights
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    for stem, config in configs.items():
        (folder / f"{stem}.json").write_text(json.dumps(config))
    return folder


# --- RL tool-use sweep


def sweep_tensors(masks: bool) -> Tensors:
    tensors = replication_tensors(planted())
    if masks:
        enc_mask, dec_mask = torch.ones(2, LATENTS), torch.ones(LATENTS, 2)
        enc_mask[1, :3] = enc_mask[0, 3:5] = 0
        dec_mask[:3, 1] = dec_mask[3:5, 0] = 0
        tensors |= {"enc_mask": enc_mask, "dec_mask": dec_mask}
    return tensors


def sweep_forward(tensors: Tensors, x: Array) -> tuple[Array, Array]:
    t = numbers(tensors)
    pre = np.maximum(np.einsum("bmd,mdf->bf", x, t["W_enc"]) + t["b_enc"], 0)
    code = pre * largest(pre, K)
    rows = t["W_dec"] * t.get("dec_mask", np.ones((LATENTS, 2)))[:, :, None]
    return code, np.einsum("bf,fmd->bmd", code, rows) + t["b_dec"]


SWEEP = {"activation_dim": WIDTH, "dict_size": LATENTS, "k": K, "n_a": 3, "n_b": 2}


@pytest.mark.parametrize("masks", [False, True])
def test_the_tool_use_sweep(tmp_path: Path, masks: bool):
    tensors = sweep_tensors(masks)
    crosscoder = load_crosscoder(write(tmp_path, tensors, config=SWEEP))
    assert_forward(crosscoder, *sweep_forward(tensors, inputs()), l0=K)
    assert any(
        "Model 0 of files of this sweep is the fine-tuned one, and is read as base" in note for note in crosscoder.notes
    )
    assert any("z-scored" in note for note in crosscoder.notes)
    assert any("enc_mask covers 5 encoder columns" in note for note in crosscoder.notes) == masks
    with pytest.raises(CrosscoderError, match="leave input_scale out"):
        load_crosscoder(tmp_path, input_scale=(1.0, 2.0))
    for change, message in (({"k": None}, "tensor says k"), ({"k": None, "act_fn": "relu"}, "keep the k largest")):
        with pytest.raises(CrosscoderError, match=message):
            load_crosscoder(write(tmp_path, tensors, config=SWEEP | change))


def test_model_0_of_the_sweep_is_the_fine_tuned_one(tmp_path: Path):
    tensors = sweep_tensors(True)
    crosscoder = load_crosscoder(write(tmp_path, tensors, config=SWEEP), swap=True)
    code, x_hat = sweep_forward(tensors, inputs()[:, ::-1])
    assert_forward(crosscoder, code, x_hat[:, ::-1], l0=K)
    assert not any("is read as base" in note for note in crosscoder.notes)


# --- crosscode


def crosscode_tensors(log_threshold: Array | None = None, folded: tuple[float, float] | None = None) -> Tensors:
    p = planted()
    scale = np.array(folded or (1.0, 1.0))[:, None, None]
    tensors = {
        "_W_enc_XiDiL": float32(p.enc * scale)[:, None],
        "_W_dec_LXoDo": float32((p.dec / scale).transpose(1, 0, 2))[:, :, None].contiguous(),
        "b_enc_L": float32(p.b),
        "_b_dec_XoDo": float32(p.b_dec / scale[:, 0])[:, None],
        "is_folded": torch.tensor(folded is not None),
        "folded_scaling_factors_in_Xi": float32(folded or (0, 0))[:, None],
        "folded_scaling_factors_out_Xo": float32(folded or (0, 0))[:, None],
    }
    return tensors if log_threshold is None else tensors | {"_activation_fn.log_threshold_L": float32(log_threshold)}


def crosscode_forward(tensors: Tensors, x: Array, keep: Callable[[Array], Array]) -> tuple[Array, Array]:
    t = numbers(tensors)
    pre = np.einsum("bmd,mpdl->bl", x, t["_W_enc_XiDiL"]) + t["b_enc_L"]
    code = np.where(keep(pre), pre, 0)
    x_hat = np.einsum("bl,lmpd->bmpd", code, t["_W_dec_LXoDo"]) + t["_b_dec_XoDo"]
    return code, x_hat[:, :, 0]


def write_crosscode(folder: Path, tensors: Tensors, classname: str, cfg: dict[str, Any], **more: Any) -> Path:
    sizes = {"n_models": 2, "n_hookpoints": 1, "d_model": WIDTH, "n_latents": LATENTS, "dtype": "float32"} | more
    rest = "".join(f"{key}: {value}\n" for key, value in sizes.items())
    write(folder, tensors)
    (folder / "model_cfg.yaml").write_text(
        f"activation_fn:\n  classname: {classname}\n  cfg: {json.dumps(cfg)}\n{rest}"
    )
    return folder


THETA = np.linspace(0.2, 3.0, LATENTS)
CROSSCODE = {
    "ReLUActivation": ({}, lambda pre: pre > 0, None),
    "TopkActivation": ({"k": K}, lambda pre: largest(pre, K), None),
    "AnthropicJumpReLUActivation": ({"size": LATENTS, "bandwidth": 2.0}, lambda pre: pre > THETA, np.log(THETA)),
}


@pytest.mark.parametrize("folded", [None, (0.25, 0.4)])
@pytest.mark.parametrize("classname", CROSSCODE)
def test_crosscode(tmp_path: Path, classname: str, folded: tuple[float, float] | None):
    cfg, keep, log_threshold = CROSSCODE[classname]
    tensors = crosscode_tensors(log_threshold, folded)
    write_crosscode(tmp_path, tensors, classname, cfg)
    if folded is None:
        with pytest.raises(CrosscoderError, match=r"not folded into its weights \(is_folded\)"):
            load_crosscoder(tmp_path)
    crosscoder = load_crosscoder(tmp_path, input_scale=None if folded else (1.0, 1.0))
    assert_forward(crosscoder, *crosscode_forward(tensors, inputs(), keep), l0=K if "Topk" in classname else None)


def test_crosscode_whose_scales_are_given(tmp_path: Path):
    tensors, scale = crosscode_tensors(), np.array([0.25, 0.4])
    write_crosscode(tmp_path, tensors, "TopkActivation", {"k": K})
    code, x_hat = crosscode_forward(tensors, inputs() * scale[:, None], lambda pre: largest(pre, K))
    assert_forward(load_crosscoder(tmp_path, input_scale=(0.25, 0.4)), code, x_hat / scale[:, None], l0=K)


def without(tensors: Tensors, name: str) -> Tensors:
    return {each: tensor for each, tensor in tensors.items() if each != name}


def test_crosscode_that_is_refused(tmp_path: Path):
    tensors = crosscode_tensors(folded=(0.25, 0.4))
    cases: dict[str, tuple[Tensors, str, dict[str, Any], dict[str, Any]]] = {
        "it has 3 models and 1 hook points; 2 models": (
            tensors | {"_W_enc_XiDiL": torch.ones(3, 1, WIDTH, LATENTS)},
            "ReLU",
            {},
            {"n_models": 3},
        ),
        "it has 2 models and 5 hook points; 2 models": (
            tensors | {"_W_enc_XiDiL": torch.ones(2, 5, WIDTH, LATENTS)},
            "ReLU",
            {},
            {"n_hookpoints": 5},
        ),
        "classname 'GroupMaxActivation' is not known": (tensors, "GroupMaxActivation", {"k_groups": 2}, {}),
        "the file holds no log_threshold": (tensors, "AnthropicJumpReLUActivation", {}, {}),
        "use_encoder_bias True, but b_enc_L is missing": (
            without(tensors, "b_enc_L"),
            "ReLU",
            {},
            {"use_encoder_bias": "true"},
        ),
        "folded into its weights already; leave input_scale out": (tensors, "ReLU", {}, {"input_scale": (1.0, 1.0)}),
    }
    for i, (message, (held, classname, cfg, more)) in enumerate(cases.items()):
        scale = more.pop("input_scale", None)
        write_crosscode(tmp_path / str(i), held, classname, cfg, **more)
        with pytest.raises(CrosscoderError, match=message):
            load_crosscoder(tmp_path / str(i), input_scale=scale)


def test_yaml_that_is_refused(tmp_path: Path):
    write_crosscode(tmp_path, crosscode_tensors(), "ReLU", {})
    for text, message in {
        "a: &a [1]\nb: [*a, *a]\n": "has YAML aliases",
        "a: !!python/object/apply:os.getcwd []\n": "is not YAML",
        "- a\n": "does not hold a YAML object",
    }.items():
        (tmp_path / "model_cfg.yaml").write_text(text)
        with pytest.raises(CrosscoderError, match=message):
            load_crosscoder(tmp_path)


# --- Llamascopium


def openmoss_forward(tensors: Tensors, x: Array) -> tuple[Array, Array, Array]:
    """Codes of each head, their union, and reconstructions."""
    t = numbers(tensors)
    hidden = np.maximum((np.einsum("bmd,mdf->bmf", x, t["W_E"]) + t["b_E"]).sum(axis=1), 0)
    norms = np.linalg.norm(t["W_D"], axis=2)
    heads = hidden[:, None] * largest(hidden[:, None] * norms, K)
    return heads, heads.max(axis=1), np.einsum("bmf,mfd->bmd", heads, t["W_D"]) + t["b_D"]


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_each_head_of_llamascopium_keeps_its_own_k(tmp_path: Path, rule: str):
    tensors = openmoss_tensors(planted())
    write(tmp_path, {"sae": tensors, "version": "2.0"}, "sae_weights.pt", config={"act_fn": rule, "top_k": K})  # type: ignore[dict-item]
    crosscoder = load_crosscoder(tmp_path)
    heads, union, x_hat = openmoss_forward(tensors, inputs())
    assert (heads[:, 0] > 0).sum() == (heads[:, 1] > 0).sum() == 60 * K, "the heads disagree and each keeps k"
    assert (union > 0).sum() > 60 * K
    assert_forward(crosscoder, union, x_hat)
    scaled = (heads * np.linalg.norm(numbers(tensors)["W_D"], axis=2)).sum(axis=1)
    assert_near(crosscoder.scaled(float32(inputs())), scaled)
    assert any("in a batch of one token" in note for note in crosscoder.notes) == (rule == "batchtopk")
    assert any("version beside its weights were not read" in note for note in crosscoder.notes)
    only = torch.zeros(LATENTS)
    only[::2] = 1.0
    t = numbers(tensors)
    part = np.einsum("bmf,mfd->bmd", heads * only.numpy(), t["W_D"]) + t["b_D"]
    assert_near(crosscoder.decode(crosscoder.encode(float32(inputs())), only), part.reshape(60, -1))


@pytest.mark.parametrize("norm", [0.0, 1e-40, 3e38, float("nan")])
def test_norms_that_were_never_set(tmp_path: Path, norm: float):
    tensors = openmoss_tensors(planted())
    norms = {f"dataset_average_activation_norm.{name}": torch.tensor(n) for name, n in (("a", 3.0), ("b", norm))}
    config = {"act_fn": "relu", "top_k": 50, "norm_activation": "dataset-wise", "hook_points": ["a", "b"]}
    write(tmp_path, tensors | norms, "sae_weights.safetensors", config=config)
    with pytest.raises(CrosscoderError, match=r"average_activation_norm\.b is .*, which is no average norm"):
        load_crosscoder(tmp_path)
    assert load_crosscoder(tmp_path, input_scale=(2.0, 3.0)).input_scale == (2.0, 3.0)


# --- Gemma Scope 2


def test_crosscoders_of_several_layers_are_refused(tmp_path: Path):
    part = {"w_enc": torch.ones(4, 2), "b_enc": torch.ones(2), "w_dec": torch.ones(2, 4, 4), "threshold": torch.ones(2)}
    for layer in range(4):
        save_file(part, tmp_path / f"params_layer_{layer}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "gemma-3-1b-it", "architecture": "jump_relu"}))
    for path in (tmp_path, tmp_path / "params_layer_2.safetensors"):
        with pytest.raises(CrosscoderError, match=r"Gemma Scope 2 crosscoder: it reads 4 layers of gemma-3-1b-it"):
            load_crosscoder(path)


# --- Dictionaries of one stream


def linear_tensors(seed: int = 1) -> Tensors:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((WIDTH, LATENTS))
    return {
        "encoder.weight": float32(rng.standard_normal((LATENTS, WIDTH))),
        "encoder.bias": float32(rng.standard_normal(LATENTS)),
        "decoder.weight": float32(rows / np.linalg.norm(rows, axis=0)),
        "b_dec": float32(rng.standard_normal(WIDTH)),
    }


def linear_forward(tensors: Tensors, x: Array, keep: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Of `x: [batch, d]`."""
    t = numbers(tensors)
    mean, scale = np.zeros(WIDTH), 1.0
    if "activation_mean" in t:
        mean = t["activation_mean"]
        scale = t["target_rms"] / np.sqrt((t["activation_std"] ** 2).sum() + 1e-8)
    y = (x - mean) * scale
    code = np.maximum((y - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], 0)
    code = code * keep(code)
    return code, (code @ t["decoder.weight"].T + t["b_dec"]) / scale + mean


def stream(reads: str, x: Array) -> Array:
    return {"difference": x[:, CHAT] - x[:, BASE], "base": x[:, BASE], "chat": x[:, CHAT]}[reads]


def placed(reads: str, x_hat: Array) -> Array:
    """A reconstruction where it lies on the axis `both`: a difference in chat's place."""
    nothing = np.zeros_like(x_hat)
    return np.concatenate([x_hat, nothing] if reads == "base" else [nothing, x_hat], axis=1)


VARIANTS = {"difference": "diff_sae", "base": "base_sae", "chat": "chat_sae"}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("reads", VARIANTS)
def test_a_batch_topk_dictionary(tmp_path: Path, reads: str, normalised: bool):
    tensors = linear_tensors() | {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(1.5)}
    if normalised:
        mean, std = np.random.default_rng(5).standard_normal((2, WIDTH))
        tensors |= {"activation_mean": float32(mean), "activation_std": float32(std), "target_rms": torch.tensor(2.0)}
    write(tmp_path, tensors, "model.safetensors", config={"dict_class": "BatchTopKSAE", "k": 100})
    with pytest.raises(CrosscoderError, match=r"set reads to difference \(chat less base\), base or chat"):
        load_crosscoder(tmp_path)
    crosscoder = load_crosscoder(tmp_path, reads=reads)
    assert crosscoder.variant == VARIANTS[reads]
    code, x_hat = linear_forward(tensors, stream(reads, inputs()), lambda code: code > 1.5)
    assert_forward(crosscoder, code, placed(reads, x_hat))
    assert 0.05 < (code > 0).mean() < 0.6
    assert any("The tensor says k 4; config.json says k 100" in note for note in crosscoder.notes)


def test_a_difference_of_base_less_chat(tmp_path: Path):
    tensors = linear_tensors() | {"k": torch.tensor(K), "threshold": torch.tensor(1.5)}
    mean, std = np.random.default_rng(5).standard_normal((2, WIDTH))
    tensors |= {"activation_mean": float32(mean), "activation_std": float32(std), "target_rms": torch.tensor(2.0)}
    write(tmp_path, tensors, "ae.pt", config={"trainer": {"dict_class": "BatchTopKSAE"}})
    crosscoder = load_crosscoder(tmp_path, reads="difference", swap=True)
    x = inputs()
    code, x_hat = linear_forward(tensors, x[:, BASE] - x[:, CHAT], lambda code: code > 1.5)
    assert_forward(crosscoder, code, placed("difference", -x_hat))
    with pytest.raises(CrosscoderError, match="nothing to swap; say which one it reads"):
        load_crosscoder(tmp_path, reads="chat", swap=True)


def test_a_topk_dictionary_keeps_k_though_it_stores_a_threshold(tmp_path: Path):
    tensors = linear_tensors() | {"k": torch.tensor(K), "threshold": torch.tensor(1.5)}
    write(tmp_path, tensors, "ae.pt", config={"trainer": {"dict_class": "AutoEncoderTopK", "k": K}})
    code, x_hat = linear_forward(tensors, stream("chat", inputs()), lambda code: largest(code, K))
    assert_forward(load_crosscoder(tmp_path, reads="chat"), code, placed("chat", x_hat))


def test_relu_dictionaries_of_one_stream(tmp_path: Path):
    tensors = linear_tensors()
    old = without(tensors, "b_dec") | {"bias": tensors["b_dec"]}
    crosscoder = load_crosscoder(write(tmp_path / "old", old, "ae.pt"), reads="base")
    code, x_hat = linear_forward(tensors, stream("base", inputs()), lambda code: code > 0)
    assert_forward(crosscoder, code, placed("base", x_hat))
    assert any("ReLU is assumed" in note for note in crosscoder.notes)
    with pytest.raises(CrosscoderError, match="its rule is unknown"):
        load_crosscoder(write(tmp_path / "unsaid", tensors, "ae.pt"), reads="base")
    with pytest.raises(CrosscoderError, match="leave reads out"):
        load_crosscoder(write(tmp_path / "two", sweep_tensors(False), config=SWEEP), reads="base")


def lens_tensors(**more: torch.Tensor) -> Tensors:
    rng = np.random.default_rng(2)
    shapes = {"W_enc": (WIDTH, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, WIDTH), "b_dec": (WIDTH,)}
    return {name: float32(rng.standard_normal(shape)) for name, shape in shapes.items()} | more


def lens_forward(tensors: Tensors, x: Array, cfg: dict[str, Any]) -> tuple[Array, Array]:
    t = numbers(tensors)
    centred = x - t["b_dec"] if cfg["apply_b_dec_to_input"] else x
    pre = centred @ t["W_enc"] + t["b_enc"]
    norms = np.linalg.norm(t["W_dec"], axis=1) if cfg.get("rescale_acts_by_decoder_norm") else 1.0
    code = np.maximum(pre, 0)
    if "threshold" in t:
        code = code * (pre > t["threshold"])
    if cfg["architecture"] == "topk":
        code = code * largest(code * norms, cfg["k"])
    return code, code @ t["W_dec"] + t["b_dec"]


LENS = {
    "standard": ({"architecture": "standard", "apply_b_dec_to_input": True, "activation_fn_str": "relu"}, False),
    "jumprelu": ({"architecture": "jumprelu", "apply_b_dec_to_input": False, "activation_fn_str": "relu"}, True),
    "topk": ({"architecture": "topk", "apply_b_dec_to_input": True, "k": K}, False),
    "scaled topk": (
        {"architecture": "topk", "apply_b_dec_to_input": False, "k": K, "rescale_acts_by_decoder_norm": True},
        False,
    ),
}


@pytest.mark.parametrize("reads", ["difference", "base"])
@pytest.mark.parametrize("name", LENS)
def test_saelens(tmp_path: Path, name: str, reads: str):
    cfg, has_threshold = LENS[name]
    tensors = lens_tensors(**({"threshold": float32(THETA)} if has_threshold else {}))
    cfg = cfg | {
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "normalize_activations": "none",
        "hook_name": "blocks.1.hook_resid_post",
    }
    write(tmp_path, tensors, "sae_weights.safetensors", cfg=cfg)
    save_file({"sparsity": torch.ones(LATENTS)}, tmp_path / "sparsity.safetensors")
    crosscoder = load_crosscoder(tmp_path, reads=reads)
    code, x_hat = lens_forward(tensors, stream(reads, inputs()), cfg)
    assert_forward(crosscoder, code, placed(reads, x_hat))


def test_saelens_inputs_of_an_average_norm(tmp_path: Path):
    cfg = {
        "architecture": "standard",
        "apply_b_dec_to_input": True,
        "normalize_activations": "expected_average_only_in",
    }
    tensors = lens_tensors()
    write(tmp_path, tensors, "sae_weights.safetensors", cfg=cfg)
    with pytest.raises(CrosscoderError, match="scaled to an average norm that the file does not hold"):
        load_crosscoder(tmp_path, reads="chat")
    code, x_hat = lens_forward(tensors, 0.25 * stream("chat", inputs()), cfg)
    crosscoder = load_crosscoder(tmp_path, reads="chat", input_scale=(1.0, 0.25))
    assert_forward(crosscoder, code, placed("chat", x_hat / 0.25))


LENS_REFUSED = {
    "architecture 'gated' is not known": {"architecture": "gated"},
    "normalize_activations 'layer_norm', which scales every token": {"normalize_activations": "layer_norm"},
    "it reads no residual stream": {"reshape_activations": "hook_z"},
    "the file holds no threshold": {"architecture": "jumprelu"},
    "says d_sae 99": {"d_sae": 99},
    "its rule is unknown": {"architecture": None},
}


@pytest.mark.parametrize("message", LENS_REFUSED)
def test_saelens_that_is_refused(tmp_path: Path, message: str):
    write(tmp_path, lens_tensors(), "sae_weights.safetensors", cfg={"architecture": "standard"} | LENS_REFUSED[message])
    with pytest.raises(CrosscoderError, match=message):
        load_crosscoder(tmp_path, reads="chat")


def test_a_dictionary_of_gemma_scope_2(tmp_path: Path):
    tensors = lens_tensors(threshold=float32(THETA))
    cfg = {"architecture": "jump_relu", "apply_b_dec_to_input": False}
    small = {name.replace("W_", "w_"): tensor for name, tensor in tensors.items()}
    write(tmp_path, small, "params.safetensors", config={"architecture": "jump_relu", "width": LATENTS, "l0": 10})
    code, x_hat = lens_forward(tensors, stream("chat", inputs()), cfg)
    assert_forward(load_crosscoder(tmp_path, reads="chat"), code, placed("chat", x_hat))
