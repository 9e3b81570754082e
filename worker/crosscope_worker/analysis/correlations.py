"""Correlations of the effects of latents on the logits of two models, from sums (math §11). Knows no model."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Correlations:
    """Pearson correlations of two effects on the logits, centred at every token, over tokens and vocabulary."""

    def __init__(self, num_latents: int) -> None:
        self._products = np.zeros((num_latents, 3))
        self.tokens = np.zeros(num_latents, np.int64)
        """Tokens that were added, [latent]."""

    def add(self, latents: NDArray[np.integer], products: Floats) -> None:
        """Adds a token for each entry of `latents: [token]`; products: [token, 3] are base², chat² and base·chat."""
        np.add.at(self._products, latents, products)
        np.add.at(self.tokens, latents, 1)

    def found(self) -> Floats:
        """[latent]; NaN where an effect is 0 everywhere."""
        base, chat, both = self._products.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((base > 0) & (chat > 0), both / np.sqrt(base * chat), np.nan)
