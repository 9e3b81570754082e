"""The tables of a look (crosscope_proto.looks), from what was found. Writes no files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from crosscope_proto.column import arrow_schema
from crosscope_proto.looks import TABLES
from crosscope_proto.roles import MODEL_NAMES
from crosscope_worker.analysis.looks.continuations import Answer
from crosscope_worker.analysis.looks.first import FirstDifference
from crosscope_worker.analysis.looks.next_tokens import NextTokens
from crosscope_worker.analysis.looks.ranking import Compared, Finding, OpenTurn, Ranking
from crosscope_worker.analysis.looks.sweep import LayerShares
from crosscope_worker.tokenizer.pieces import lone_pieces, text_pieces
from crosscope_worker.tokenizer.tokens import TextTokenizer


@dataclass(frozen=True, eq=False)
class Looked:
    """All that was found."""

    ranking: Ranking
    findings: list[Finding]
    next_tokens: list[tuple[NextTokens, NextTokens]]
    """Of every finding, base first."""
    first: list[FirstDifference]
    layers: list[LayerShares]
    turns: list[tuple[OpenTurn, tuple[Answer, Answer]]]
    recommended: tuple[int | None, str]
    """The layer, and why it or why none."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why a part was not measured, by its name."""


def look_tables(looked: Looked, datasets: Sequence[str], tokenizer: TextTokenizer) -> dict[str, pa.Table]:
    """Every table of a look, by its file."""
    ranked = {each.text: rank for rank, each in enumerate(looked.ranking.texts(), 1)}
    compared = {each.text: each for each in looked.ranking.texts()}
    compared |= {finding.compared.text: finding.compared for finding in looked.findings}
    rows = {text: row for row, text in enumerate(compared)}
    found: Mapping[str, list[dict[str, Any]]] = {
        "layers.parquet": [asdict(each) for each in looked.layers],
        "groups.parquet": [asdict(each) for each in looked.ranking.groups()],
        "texts.parquet": [_text(each, ranked.get(each.text, 0), datasets, tokenizer) for each in compared.values()],
        "findings.parquet": [
            {"text": rows[finding.compared.text], "position": finding.position, "kl": finding.kl}
            | _next(following, tokenizer)
            for finding, following in zip(looked.findings, looked.next_tokens, strict=True)
        ],
        "first.parquet": [
            {
                "dataset": datasets[each.dataset],
                "layer": each.layer,
                "position": each.position,
                "num_texts": each.num_texts,
                "norm": each.norm,
                "norm_base": each.norm_base,
            }
            | {
                f"tokens_{name}": lone_pieces(tokenizer, ids)
                for name, ids in zip(MODEL_NAMES, each.token_ids, strict=True)
            }
            for each in looked.first
        ],
        "continuations.parquet": [
            {
                "dataset": datasets[turn.text.dataset],
                "place": turn.text.place,
                "kl": turn.kl,
                **_tokens(turn.text.ids[: turn.end], turn.text.roles[: turn.end], tokenizer),
            }
            | {f"{name}_text": answer.text for name, answer in zip(MODEL_NAMES, answers, strict=True)}
            | {f"{name}_ended": int(answer.ended) for name, answer in zip(MODEL_NAMES, answers, strict=True)}
            for turn, answers in looked.turns
        ],
    }
    return {name: pa.Table.from_pylist(found[name], schema=arrow_schema(columns)) for name, columns in TABLES.items()}


def _text(compared: Compared, rank: int, datasets: Sequence[str], tokenizer: TextTokenizer) -> dict[str, Any]:
    text = compared.text
    return {
        "dataset": datasets[text.dataset],
        "place": text.place,
        "rank": rank,
        "num_tokens": len(compared.kl),
        "mean": compared.mean,
        "sum": compared.sum,
        "kl": compared.over_text().tolist(),
        **_tokens(text.ids, text.roles, tokenizer),
    }


def _next(following: tuple[NextTokens, NextTokens], tokenizer: TextTokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, each in zip(MODEL_NAMES, following, strict=True):
        found[f"{name}_ids"] = each.ids
        found[f"{name}_pieces"] = lone_pieces(tokenizer, each.ids)
        found[f"{name}_log_probabilities"] = each.log_probabilities
    return found


def _tokens(ids: np.ndarray, roles: np.ndarray, tokenizer: TextTokenizer) -> dict[str, Any]:
    return {"token_ids": ids.tolist(), "pieces": text_pieces(tokenizer, ids), "roles": roles.tolist()}
