"""Small random crosscoders, written in each published layout, and their evaluation in float64 numpy.

Written from the descriptions of the layouts, without the program's own readers.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

WIDTH, LATENTS = 6, 17
Array = NDArray[np.float64]


@dataclass
class Planted:
    """A crosscoder in the letters of the layouts: enc [M,d,F], b [F], dec [M,F,d], b_dec [M,d]."""

    enc: Array
    b: Array
    dec: Array
    b_dec: Array
    normalisation: str = "CROSSCODER"
    thresholds: Array = field(default_factory=lambda: np.full(2, -1.0))
    mean: Array = field(default_factory=lambda: np.zeros((2, WIDTH)))
    scale: Array = field(default_factory=lambda: np.ones(2))

    def norms(self) -> Array:
        """[M, F] for DECOUPLED, else [1, F]."""
        each = np.linalg.norm(self.dec, axis=2)
        both = np.sqrt((each**2).sum(axis=0))
        return {
            "CROSSCODER": each.sum(axis=0)[None],
            "SAE": both[None],
            "MIXED": (both + 0.1 * each.sum(axis=0))[None],
            "NONE": np.ones((1, LATENTS)),
            "DECOUPLED": each,
        }[self.normalisation]

    def evaluate(self, x: Array) -> tuple[Array, Array, Array]:
        """Raw code, scaled activations and reconstructions of `x: [batch, M, d]`."""
        inputs = (x - self.mean) * self.scale[:, None]
        code = np.maximum(np.einsum("bmd,mdf->bf", inputs, self.enc) + self.b, 0)
        norms = self.norms()
        thresholds = self.thresholds.reshape(2, -1)[: len(norms)]
        kept = code[:, None] * norms > thresholds
        per_model = np.broadcast_to(code[:, None] * kept, (len(x), len(norms), LATENTS))
        scaled = (per_model * norms).sum(axis=1)
        each = np.broadcast_to(per_model, (len(x), 2, LATENTS))
        x_hat = np.einsum("bmf,mfd->bmd", each, self.dec) + self.b_dec
        return per_model.max(axis=1), scaled, x_hat / self.scale[:, None] + self.mean


def planted(seed: int = 0, **options) -> Planted:
    rng = np.random.default_rng(seed)
    shapes = ((2, WIDTH, LATENTS), (LATENTS,), (2, LATENTS, WIDTH), (2, WIDTH))
    # Rounded to float32, so that the file holds these numbers exactly.
    weights = [rng.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in shapes]
    return Planted(*weights, **options)


def float32(array) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def hub_tensors(p: Planted) -> dict[str, torch.Tensor]:
    return {
        "encoder.weight": float32(p.enc),
        "encoder.bias": float32(p.b),
        "decoder.weight": float32(p.dec),
        "decoder.bias": float32(p.b_dec),
    }


def replication_tensors(p: Planted) -> dict[str, torch.Tensor]:
    dec = float32(p.dec.transpose(1, 0, 2)).contiguous()
    return {"W_enc": float32(p.enc), "b_enc": float32(p.b), "W_dec": dec, "b_dec": float32(p.b_dec)}


def openmoss_tensors(p: Planted) -> dict[str, torch.Tensor]:
    """The encoder's bias is split unevenly between the heads."""
    bias = np.stack([0.25 * p.b, 0.75 * p.b])
    return {"W_E": float32(p.enc), "b_E": float32(bias), "W_D": float32(p.dec), "b_D": float32(p.b_dec)}


def write_hub(folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_equal(crosscoder, p: Planted) -> None:
    """Code, scaled activations and reconstructions agree to 1e-5, and the code is neither empty nor full."""
    x = np.random.default_rng(99).standard_normal((40, 2, WIDTH)).astype(np.float32).astype(np.float64)
    code, scaled, x_hat = p.evaluate(x)
    found = crosscoder.encode(float32(x))
    pairs = ((found, code), (crosscoder.scaled(float32(x)), scaled), (crosscoder.decode(found), x_hat.reshape(40, -1)))
    for ours, expected in pairs:
        assert np.abs(ours.double().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(found.numpy() > 0, code > 0)
    assert 0.1 < (code > 0).mean() < 0.9
