"""Means over tokens or predictions with their standard errors over texts, from sums (math §10, §11). Knows no model."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class TextMeans:
    """Means of figures over the tokens of texts: `m = sum_t S_t / sum_t n_t`, with errors by the texts' residuals.

    Figures and numbers of tokens have axes of their own, which broadcast: one number may count for several figures.
    """

    def __init__(self, figures: tuple[int, ...], counts: tuple[int, ...] | None = None) -> None:
        """The shapes of figures and of numbers of tokens, by default the same."""
        counts = figures if counts is None else counts
        self.sums = np.zeros(figures)
        """`sum_t S_t`."""
        self.num_tokens = np.zeros(counts)
        """`sum_t n_t`."""
        self.num_texts = np.zeros(counts, np.int64)
        """Texts with a token."""
        self._ss, self._sn, self._nn = np.zeros(figures), np.zeros(figures), np.zeros(counts)

    def add(self, sums: Floats, counts: NDArray[np.number], at: NDArray[np.integer] | slice = slice(None)) -> None:
        """Adds a text, everywhere or for some different entries `at` of the first axis.

        sums: figures added up over the text's tokens, `S_t`. counts: its tokens, `n_t`. Both as the shapes say, without
        the entries that are not `at`.
        """
        n = counts.astype(np.float64)
        self.sums[at] += sums
        self._ss[at] += sums**2
        self._sn[at] += sums * n
        self.num_tokens[at] += n
        self._nn[at] += n**2
        self.num_texts[at] += counts > 0

    def means(self) -> Floats:
        """The means; NaN without tokens."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.sums / self.num_tokens

    def errors(self) -> Floats:
        """`sqrt(T / (T - 1) · sum_t (S_t - m n_t)²) / sum_t n_t` over `T` texts; NaN with fewer than two."""
        mean, texts = self.means(), self.num_texts
        squares = self._ss - 2 * mean * self._sn + mean**2 * self._nn
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.sqrt(np.maximum(squares, 0.0) * texts / (texts - 1)) / self.num_tokens
        return np.where(texts >= 2, found, np.nan)
