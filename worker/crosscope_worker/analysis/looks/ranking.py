"""What differs most in a data set, by KL(chat ‖ base) at every token: tokens, texts, prompts, roles and data sets.

Gets the figures window by window and keeps the largest. Does not know models.
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from crosscope_proto.recipe import LookRecipe
from crosscope_proto.roles import TokenRole
from crosscope_worker.analysis.behaviours import assistant_turns
from crosscope_worker.analysis.text_means import TextMeans
from crosscope_worker.analysis.whole_texts import FIRST_TOKENS
from crosscope_worker.data.texts import Text

SAME_TOKENS = 16
"""Findings whose last tokens, this many, are the same count as one."""


@dataclass(frozen=True, eq=False)
class Compared:
    """A text, and how much the models differ at its tokens."""

    text: Text
    positions: np.ndarray
    """[kept] int64: positions that are compared, ascending."""
    kl: np.ndarray
    """[kept] float32: KL(chat ‖ base) of the predictions made there, nats."""

    @property
    def sum(self) -> float:
        """KL added up over the text."""
        return float(self.kl.sum(dtype=np.float64))

    @property
    def mean(self) -> float:
        """Mean KL; 0 if no token is compared."""
        return self.sum / len(self.kl) if len(self.kl) else 0.0

    def over_text(self) -> np.ndarray:
        """[pos] float32: KL at every token, NaN where it is not compared."""
        values = np.full(len(self.text.ids), np.nan, np.float32)
        values[self.positions] = self.kl
        return values


@dataclass(frozen=True, eq=False)
class Finding:
    """A token at which the models differ."""

    compared: Compared
    position: int
    kl: float


@dataclass(frozen=True, eq=False)
class OpenTurn:
    """A conversation that is cut before an assistant turn."""

    text: Text
    end: int
    """Number of tokens of the prompt."""
    kl: float
    """KL added up over the predictions of the turn's first tokens."""


@dataclass(frozen=True)
class Group:
    """KL over tokens that have something in common."""

    kind: str
    """"dataset" or "role"."""
    name: str
    num_tokens: int
    num_texts: int
    mean: float
    mean_se: float
    share: float


_Kept = TypeVar("_Kept", Finding, OpenTurn)


class Ranking:
    """Keeps what differs most of everything that it is given."""

    def __init__(self, recipe: LookRecipe) -> None:
        self._recipe = recipe
        self._datasets = [spec.name for spec in recipe.data]
        sizes = len(TokenRole) + 1, len(self._datasets), 1
        self._by_role, self._by_dataset, self._whole = (TextMeans((size,)) for size in sizes)
        self._kl: list[np.ndarray] = []
        self._tokens: dict[bytes, Finding] = {}
        self._texts: list[tuple[float, int, Compared]] = []
        self._turns: dict[bytes, OpenTurn] = {}
        self._count = itertools.count()

    @property
    def num_tokens(self) -> int:
        """Number of tokens that were compared so far."""
        return int(self._whole.num_tokens[0])

    @property
    def num_texts(self) -> int:
        """Number of texts with such tokens."""
        return int(self._whole.num_texts[0])

    def add(self, compared: Compared) -> None:
        """Takes in a text."""
        if not len(compared.kl):
            return
        text, kl = compared.text, compared.kl.astype(np.float64)
        roles = text.roles[compared.positions]
        size = len(TokenRole) + 1
        sums = np.bincount(roles, kl, size).astype(np.float64)  # which the stubs take for integers
        self._by_role.add(sums, np.bincount(roles, minlength=size))
        total, count = np.array([kl.sum()]), np.array([len(kl)])
        self._by_dataset.add(total, count, np.array([text.dataset]))
        self._whole.add(total, count)
        self._kl.append(compared.kl)
        self._add_tokens(compared)
        heapq.heappush(self._texts, (compared.mean, -next(self._count), compared))
        if len(self._texts) > self._recipe.num_conversations:
            heapq.heappop(self._texts)
        self._add_turn(compared)

    def _add_tokens(self, compared: Compared) -> None:
        largest = np.argsort(-compared.kl, kind="stable")[: self._recipe.findings_per_text]
        for index in largest[compared.kl[largest] > 0].tolist():
            position, kl = int(compared.positions[index]), float(compared.kl[index])
            key = compared.text.ids[max(0, position + 1 - SAME_TOKENS) : position + 1].tobytes()
            if (known := self._tokens.get(key)) is None or known.kl < kl:
                self._tokens[key] = Finding(compared, position, kl)
        self._tokens = _trimmed(self._tokens, self._recipe.num_findings)

    def _add_turn(self, compared: Compared) -> None:
        whole = np.nan_to_num(compared.over_text())
        best: OpenTurn | None = None
        for start, end in assistant_turns(compared.text.roles):
            kl = float(whole[start - 1 : min(end, start + FIRST_TOKENS) - 1].sum(dtype=np.float64)) if start else 0.0
            if kl > 0 and (best is None or kl > best.kl):
                best = OpenTurn(compared.text, start, kl)
        if best is not None and self._recipe.num_prompts:
            key = best.text.ids[: best.end].tobytes()
            if (known := self._turns.get(key)) is None or known.kl < best.kl:
                self._turns[key] = best
            self._turns = _trimmed(self._turns, self._recipe.num_prompts)

    def findings(self) -> list[Finding]:
        """The tokens that differ most, largest first."""
        return heapq.nlargest(self._recipe.num_findings, self._tokens.values(), key=lambda each: each.kl)

    def texts(self) -> list[Compared]:
        """The texts with the largest mean, largest first."""
        return [compared for _, _, compared in sorted(self._texts, key=lambda each: each[:2], reverse=True)]

    def turns(self) -> list[OpenTurn]:
        """The prompts that differ most, largest first."""
        return heapq.nlargest(self._recipe.num_prompts, self._turns.values(), key=lambda each: each.kl)

    def num_folded(self, findings: Sequence[Finding]) -> int:
        """Number of tokens that differ at least as much as the last finding and are none."""
        if not findings:
            return 0
        least = findings[-1].kl
        return sum(int((kl >= least).sum()) for kl in self._kl) - len(findings)

    def groups(self) -> Iterator[Group]:
        """Every data set and role that has tokens."""
        total = self._whole.sums[0] or 1.0
        roles = ["", *(role.name.lower() for role in TokenRole)]
        numbers = [0, *map(int, TokenRole)]
        for kind, names, places, sums in (
            ("dataset", self._datasets, range(len(self._datasets)), self._by_dataset),
            ("role", roles, numbers, self._by_role),
        ):
            means, errors = sums.means(), sums.errors()
            for name, index in zip(names, places, strict=True):
                if sums.num_tokens[index]:
                    counts = int(sums.num_tokens[index]), int(sums.num_texts[index])
                    share = float(sums.sums[index] / total)
                    yield Group(kind, name, *counts, float(means[index]), float(errors[index]), share)

    def figures(self, findings: Sequence[Finding]) -> dict[str, float]:
        """See LookManifest.figures."""
        kl = np.sort(np.concatenate(self._kl).astype(np.float64))
        total = float(kl.sum())
        top = kl[-max(1, len(kl) // 100) :]
        figures = {
            "mean_kl": float(self._whole.means()[0]),
            "mean_kl_se": float(self._whole.errors()[0]),
            "median_kl": float(np.quantile(kl, 0.5)),
            "p99_kl": float(np.quantile(kl, 0.99)),
            "max_kl": float(kl[-1]),
            "sum_kl": total,
        }
        if total > 0:
            figures["share_top"] = float(top.sum()) / total
            figures["share_findings"] = sum(finding.kl for finding in findings) / total
        return {name: value for name, value in figures.items() if math.isfinite(value)}


def _trimmed(kept: dict[bytes, _Kept], wanted: int) -> dict[bytes, _Kept]:
    """The largest, once there are four times as many as are wanted."""
    if len(kept) <= 4 * wanted:
        return kept
    return dict(heapq.nlargest(2 * wanted, kept.items(), key=lambda item: item[1].kl))
