"""The mean activation difference at the first positions of texts, and the tokens that it raises (math §10).

Does not know what texts say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.lens import Lens
from crosscope_worker.data.texts import Text
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.residual import layer_outputs, stream

_TEXTS_PER_FORWARD = 128


@dataclass(frozen=True, eq=False)
class FirstDifference:
    """The mean difference at one position of one data set at one layer."""

    dataset: int
    layer: int
    position: int
    num_texts: int
    norm: float
    norm_base: float
    token_ids: tuple[list[int], list[int]]
    """The tokens that it raises most through each model's head, base first; none without a lens or a difference."""


class FirstDifferences:
    """Means over texts of both models' streams at their first positions. The models' widths must be equal."""

    def __init__(self, pair: Pair, layers: Sequence[int], num_datasets: int, num_positions: int) -> None:
        self._pair, self._layers, self._num_positions = pair, list(layers), num_positions
        shape = num_datasets, len(layers), num_positions, pair.d_model[BASE]
        self._base, self._difference = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self._counts = torch.zeros(num_datasets, num_positions, dtype=torch.int64)

    @torch.inference_mode()
    def add(self, texts: Sequence[Text]) -> None:
        """Runs both models on the beginnings of texts."""
        for start in range(0, len(texts), _TEXTS_PER_FORWARD):
            some = texts[start : start + _TEXTS_PER_FORWARD]
            ids = np.zeros((len(some), self._num_positions), np.int64)
            there = torch.zeros(ids.shape, dtype=torch.bool)
            for row, text in enumerate(some):
                length = min(self._num_positions, len(text.ids))
                ids[row, :length] = text.ids[:length]
                there[row, :length] = True
            self._run(torch.from_numpy(ids), there, torch.tensor([text.dataset for text in some]))

    def _run(self, ids: torch.Tensor, there: torch.Tensor, dataset: torch.Tensor) -> None:
        outputs = [layer_outputs(model, self._layers, ids.to(self._pair.device)) for model in self._pair.models]
        mask = there[..., None].double()
        self._counts.index_add_(0, dataset, there.long())
        for index in range(len(self._layers)):
            base, chat = (stream(outputs[model][index]).double().cpu() * mask for model in (BASE, CHAT))
            self._base[:, index].index_add_(0, dataset, base)
            self._difference[:, index].index_add_(0, dataset, chat - base)

    def found(self, lenses: Sequence[Lens | None]) -> list[FirstDifference]:
        """The means, by data set, layer and position."""
        counts = self._counts[:, None, :, None].clamp_min(1)
        base, difference = self._base / counts, self._difference / counts
        flat = difference.flatten(0, 2).float()
        raised = [None if lens is None else lens.tokens(flat).tolist() for lens in lenses]
        found: list[FirstDifference] = []
        for row, (dataset, index, position) in enumerate(np.ndindex(*difference.shape[:3])):
            if not (count := int(self._counts[dataset, position])):
                continue
            norm = float(difference[dataset, index, position].norm())
            tokens = [each[row] if each is not None and norm else [] for each in raised]
            norm_base = float(base[dataset, index, position].norm())
            place = dataset, self._layers[index], position, count
            found.append(FirstDifference(*place, norm, norm_base, (tokens[BASE], tokens[CHAT])))
        return found
