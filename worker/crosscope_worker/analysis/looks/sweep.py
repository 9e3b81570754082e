"""The share of KL(chat ‖ base) that the streams at a layer carry, at every layer (math §10), and the layer to choose.

At each finding the streams of one model are put into the other at all tokens of the text that the policy keeps, and
everything above the layer runs again. Does not know how findings were chosen.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.analysis.looks.heads import Heads, divergence
from crosscope_worker.analysis.looks.ranking import Finding
from crosscope_worker.data.texts import Text
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.residual import layer_outputs, stream
from crosscope_worker.models.upper_half import UpperHalf
from crosscope_worker.tokenizer.token_policy import policy_positions

BATCH_TOKENS = 2048
"""Tokens of one forward, padding included; a longer text runs alone."""
MOST_LAYERS = 16
ENOUGH = 0.7
"""A layer is recommended from this share on, in both directions."""

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class LayerShares:
    """What the streams at one layer carry."""

    layer: int
    share_chat: float
    """Share that goes with base's stream put into chat."""
    share_chat_se: float
    share_base: float
    """Share that goes with chat's stream put into base."""
    share_base_se: float

    @property
    def carried(self) -> float:
        """The smaller of both."""
        return min(self.share_chat, self.share_base)


def swept_layers(num_layers: int, every: int | None) -> list[int]:
    """Every n-th layer, counted down from the last, ascending; by default at most MOST_LAYERS."""
    step = every or -(-num_layers // MOST_LAYERS)
    return sorted(range(num_layers - 1, -1, -step))


def sweep(
    pair: Pair, heads: Heads, layers: Sequence[int], findings: Sequence[Finding], policy: TokenPolicy, report: Report
) -> list[LayerShares]:
    """The shares at each of `layers`, ascending, of which the last is the models' last layer.

    Raises PairError for a model that cannot be run from one of the layers on. The models' widths must be equal.
    """
    uppers = [tuple(UpperHalf(model, layer) for model in pair.models) for layer in layers]
    places: defaultdict[Text, list[int]] = defaultdict(list)
    for finding in findings:
        places[finding.compared.text].append(finding.position)
    sums: list[np.ndarray] = []
    done = 0
    for batch in _batches(places, PairActivations(pair, heads.layer)):
        sums += _shares(pair, heads, layers, uppers, _Batch(batch, places, policy, pair.device))
        done += len(batch)
        report(done / len(places), f"{len(layers)} layers swept on {done} of {len(places)} texts")
    return [_layer_shares(layer, np.stack(sums)[:, index]) for index, layer in enumerate(layers)]


class _Batch:
    """Texts side by side, right-padded, each cut behind its last finding."""

    def __init__(
        self,
        texts: Sequence[tuple[Text, int]],
        places: dict[Text, list[int]],
        policy: TokenPolicy,
        device: torch.device,
    ) -> None:
        shape = len(texts), max(length for _, length in texts)
        ids, kept = np.zeros(shape, np.int64), np.zeros(shape, bool)
        rows: list[int] = []
        columns: list[int] = []
        for row, (text, length) in enumerate(texts):
            ids[row, :length] = text.ids[:length]
            kept[row, policy_positions(text.roles[:length], policy)] = True
            rows += [row] * len(places[text])
            columns += places[text]
        self.num_texts = len(texts)
        self.ids, self.kept = torch.from_numpy(ids).to(device), torch.from_numpy(kept).to(device)
        self.rows, self.columns = torch.tensor(rows, device=device), torch.tensor(columns, device=device)

    def at(self, x: Tensor) -> Tensor:
        """[finding, …] of `x: [text, pos, …]`."""
        return x[self.rows, self.columns]

    def by_text(self, values: Tensor) -> np.ndarray:
        """[text] float64: the sum of `values: [finding]`."""
        return np.bincount(self.rows.cpu().numpy(), values.double().cpu().numpy(), self.num_texts)


@torch.inference_mode()
def _shares(
    pair: Pair, heads: Heads, layers: Sequence[int], uppers: Sequence[tuple[UpperHalf, ...]], batch: _Batch
) -> list[np.ndarray]:
    """For each text of a batch [layer, 3]: KL added up as it is, with chat patched, and with base patched."""
    found = [layer_outputs(model, layers, batch.ids) for model in pair.models]
    streams = [[stream(each).to(batch.ids.device) for each in outputs] for outputs in found]
    last = torch.cat([batch.at(each[-1]).float() for each in streams], dim=-1)
    logs: list[list[Tensor]] = [[], []]
    for _, both in heads.pieces(last):
        for model in (BASE, CHAT):
            logs[model].append(both[model])
    base, chat = (torch.cat(parts) for parts in logs)
    found = np.empty((batch.num_texts, len(layers), 3))
    found[:, :, 0] = batch.by_text(divergence(chat, base))[:, None]
    for index in range(len(layers)):
        patched: list[Tensor] = []
        for model in (BASE, CHAT):
            x = torch.where(batch.kept[..., None], streams[1 - model][index], streams[model][index])
            upper = uppers[index][model]
            patched.append(heads.of_hidden(upper, batch.at(upper.hidden(batch.ids, x))))
        found[:, index, 1] = batch.by_text(divergence(patched[CHAT], base))
        found[:, index, 2] = batch.by_text(divergence(chat, patched[BASE]))
    return list(found)


def _batches(places: dict[Text, list[int]], activations: PairActivations) -> Iterator[list[tuple[Text, int]]]:
    """Texts with the length to which they are cut; a cut never changes how a model reads the rest."""
    groups: defaultdict[int, list[tuple[Text, int]]] = defaultdict(list)
    for text, positions in places.items():
        cut, whole = max(positions) + 1, len(text.ids)
        regimes = activations.regimes([cut, whole])
        groups[regimes[1]].append((text, cut if regimes[0] == regimes[1] else whole))
    for group in groups.values():
        batch: list[tuple[Text, int]] = []
        for each in sorted(group, key=lambda pair: pair[1]):
            if batch and each[1] * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(each)
        yield batch


def _layer_shares(layer: int, sums: np.ndarray) -> LayerShares:
    """The shares of `sums: [text, 3]` with jackknife errors over the texts."""
    whole = sums.sum(axis=0)
    shares = 1 - whole[1:] / whole[0]
    errors = np.full(2, math.nan)
    if (num_texts := len(sums)) > 1:
        left = whole - sums
        with np.errstate(divide="ignore", invalid="ignore"):
            each = 1 - left[:, 1:] / left[:, :1]
        errors = np.sqrt((num_texts - 1) / num_texts * ((each - each.mean(axis=0)) ** 2).sum(axis=0))
    return LayerShares(layer, float(shares[0]), float(errors[0]), float(shares[1]), float(errors[1]))


def recommend(shares: Sequence[LayerShares], num_layers: int) -> tuple[int, str]:
    """The lowest layer that carries ENOUGH in both directions, else the one that carries most; and why."""
    enough = [each for each in shares if each.carried >= ENOUGH]
    chosen = enough[0] if enough else max(shares, key=lambda each: each.carried)
    carries = (
        f"base's stream there takes {_percent(chosen.share_chat, chosen.share_chat_se)} of the difference out of chat, "
        f"and chat's brings {_percent(chosen.share_base, chosen.share_base_se)} of it into base"
    )
    what = (
        f"the lowest swept layer that carries at least {ENOUGH:.0%} of the difference in both directions"
        if enough
        else f"the swept layer that carries most; none reaches {ENOUGH:.0%} in both directions"
    )
    reads = "which no layer above it reads: it is the last"
    if above := num_layers - 1 - chosen.layer:
        reads = f"which {above} {'layer' if above == 1 else 'layers'} above it can read"
    return chosen.layer, f"Layer {chosen.layer} of {num_layers} is {what}: {carries}, {reads}."


def _percent(share: float, error: float) -> str:
    return f"{share:.0%}" if math.isnan(error) else f"{share:.0%} ± {error:.0%}"
