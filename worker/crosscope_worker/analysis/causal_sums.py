"""Means over predictions with errors over texts, and correlations, from sums (math §11). Knows no model."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class TextMeans:
    """Means of figures over the predictions of texts, with their standard errors over texts.

    Axes: latent, figure, group of predictions. Each latent has its own number of texts.
    """

    def __init__(self, num_latents: int, num_figures: int, num_groups: int) -> None:
        figures, groups = (num_latents, num_figures, num_groups), (num_latents, num_groups)
        self._s, self._ss, self._sn = (np.zeros(figures) for _ in range(3))
        self._n, self._nn = np.zeros(groups), np.zeros(groups)
        self._texts = np.zeros(groups, np.int64)

    def add(self, sums: Floats, counts: NDArray[np.integer], latents: NDArray[np.integer]) -> None:
        """Adds a text for some latents.

        sums: [chosen latent, figure, group], over the text's predictions. counts: [group], its predictions. latents:
        [chosen latent].
        """
        n = counts.astype(np.float64)
        self._s[latents] += sums
        self._ss[latents] += sums**2
        self._sn[latents] += sums * n
        self._n[latents] += n
        self._nn[latents] += n**2
        self._texts[latents] += counts > 0

    def means(self) -> Floats:
        """`sum_t S_t / sum_t n_t`, [latent, figure, group]; NaN without predictions."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._s / self._n[:, None]

    def errors(self) -> Floats:
        """Standard errors of the means, by the residuals `S_t - mean n_t` of the texts; NaN with fewer than two."""
        mean, texts = self.means(), self._texts[:, None]
        squares = self._ss - 2 * mean * self._sn + mean**2 * self._nn[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.sqrt(np.maximum(squares, 0.0) * texts / (texts - 1)) / self._n[:, None]
        return np.where(texts >= 2, found, np.nan)

    def num_predictions(self) -> Floats:
        """Predictions, [latent, group]."""
        return self._n

    def num_texts(self) -> NDArray[np.int64]:
        """Texts with a prediction, [latent, group]."""
        return self._texts


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
