"""How fast jobs ran on devices that were measured: a row a device, with its source. New devices are new rows.

A plan scales a row to a recipe's sizes by arithmetic operations and bytes. Pure numbers: asks no device.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What was measured on one device."""

    name: str
    """How people name it, for instance "h100"."""
    title: str
    called: str
    """Pattern that finds the device in what a job worker says of its own."""
    source: str
    """Where the figures come from, with date."""
    memory_bytes: int | None
    """Its memory; None where machines differ."""
    forward_flops: float
    """Operations a second while both models run up to a layer."""
    token_s: float
    """Seconds a token costs beside these operations: reading, tokenising, small models' calls."""
    product_flops: Mapping[str, float]
    """Operations a second of a training step's encoder product, by the recipe's dtype."""
    weight_s: Mapping[str, float]
    """Seconds a weight of the dictionary costs in each step beside that product (sums, norms, Adam), by dtype."""
    analysis_s: float
    """Seconds of analysis a token, latent and dimension of both models, beside running the models."""
    analysis_latent_s: float | None
    """Seconds a latent at the end of an analysis; None: not measured."""

    def is_of(self, device: str) -> bool:
        """Whether a device, as a job worker describes it, is one of these."""
        return re.search(self.called, device, re.IGNORECASE) is not None

    def harvest_s(self, token_flops: float) -> float:
        """Seconds in which both models read a token, for the operations that this takes."""
        return self.token_s + token_flops / self.forward_flops

    def step_s(self, dtype: str, batch_size: int, num_latents: int, both: int) -> float:
        """Seconds of one training step."""
        product = 2 * batch_size * both * num_latents / self.product_flops[dtype]
        return product + 2 * num_latents * both * self.weight_s[dtype]

    def analysis_seconds(self, tokens: int, token_flops: float, num_latents: int, both: int) -> float:
        """Seconds of an analysis of `tokens` held-out tokens."""
        a_token = self.harvest_s(token_flops) + self.analysis_s * num_latents * both
        return tokens * a_token + num_latents * (self.analysis_latent_s or 0.0)


DEVICES = (
    Rates(
        name="h100",
        title="NVIDIA H100 80GB",
        called=r"H100",
        source="one H100 80GB HBM3, two random Gemma 2 2B to layer 13, 73 728 latents, batch 2 048, 27 November 2026",
        memory_bytes=85_520_809_984,
        # 116 300 tokens/s of 4.36 GFLOP each; 93 200 where texts are read and tokenised beside.
        forward_flops=5.07e14,
        token_s=2.1e-6,
        # Products alone: 773 TFLOP/s (bfloat16), 354 (TF32). Whole steps of batch_topk in a training: 14.7 ms; 16.6
        # alone in float32.
        product_flops={"bfloat16": 7.73e14, "float32": 3.54e14},
        weight_s={"bfloat16": 1.90e-11, "float32": 1.87e-11},
        # 42 600 tokens/s of given activations; 5.94 s at the end.
        analysis_s=6.91e-14,
        analysis_latent_s=8.06e-5,
    ),
    Rates(
        name="cpu",
        title="two CPU cores",
        called=r"\bCPU\b",
        source="two shared cores of an AMD EPYC, make bench of 25 November 2026 and the demo of 27 November",
        memory_bytes=None,
        # Two points: 1 892 tokens/s of 27.5 MFLOP each (harvest, mixed lengths), and the demo's 65 536 tokens of
        # 0.7 MFLOP each in 4.9 s (its stage fill).
        forward_flops=5.9e10,
        token_s=6.3e-5,
        # Steps of batch_topk at 1 024 and 2 048 tokens took 0.569 and 0.989 s at 16 384 latents of 2 · 512.
        product_flops={"float32": 8.2e10, "bfloat16": 8.2e10},
        weight_s={"float32": 4.4e-9, "bfloat16": 4.4e-9},
        # 18.1 µs a latent and 1 000 tokens at 2 · 256.
        analysis_s=3.5e-11,
        analysis_latent_s=None,
    ),
)
"""The devices that were measured. float32 products were TF32 on the H100. bfloat16 on the CPU was taken as fast as
float32."""


def named(name: str) -> Rates | None:
    """The device of that name."""
    return next((each for each in DEVICES if each.name == name), None)


def of_device(device: str) -> Rates | None:
    """The measured device that a job worker's device is one of."""
    return next((each for each in DEVICES if each.is_of(device)), None)
