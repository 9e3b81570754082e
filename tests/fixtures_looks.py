"""Writes looks for tests, without models: figures that can be read off by eye."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.artefacts import PairManifest, look_folder
from crosscope_proto.column import arrow_schema
from crosscope_proto.looks import MANIFEST, TABLES, LookManifest
from crosscope_proto.manifest import manifest_text
from crosscope_proto.roles import TokenRole

NAN = float("nan")
SHARES = {0: (0.03, 0.12), 1: (0.2, 0.3), 2: (0.82, 0.71), 3: (1.0, 0.99)}
"""By layer: share_chat and share_base."""
_NEXT: dict[str, Any] = {
    "base_ids": [5, 6],
    "base_pieces": [" the", "\n"],
    "base_log_probabilities": [-0.5, -1.5],
    "chat_ids": [7, 8],
    "chat_pieces": ["Sorry", " I"],
    "chat_log_probabilities": [-0.1, -3.0],
}


def _tokens(*pieces: str) -> dict[str, Any]:
    roles = [TokenRole.BOS, *[TokenRole.USER] * (len(pieces) - 1)]
    return {"token_ids": list(range(2, 2 + len(pieces))), "pieces": list(pieces), "roles": [int(r) for r in roles]}


def _rows() -> dict[str, list[dict[str, Any]]]:
    text = {"dataset": "chat", "num_tokens": 2}
    shares = ("share_chat", "share_base")
    return {
        "layers": [
            {"layer": layer} | dict(zip(shares, both, strict=True)) | {f"{each}_se": 0.01 for each in shares}
            for layer, both in SHARES.items()
        ],
        "groups": [
            {"kind": kind, "name": name, "num_tokens": 6, "num_texts": 3, "mean": 2.0, "mean_se": 0.5, "share": 1.0}
            for kind, name in (("dataset", "chat"), ("role", "user"))
        ],
        "texts": [
            text
            | {"place": "a:1", "rank": 2, "mean": 1.5, "sum": 3.0, "kl": [NAN, 1.0, 2.0]}
            | _tokens("<b>", "a", "b"),
            text
            | {"place": "a:2", "rank": 0, "mean": 0.5, "sum": 1.0, "kl": [NAN, 0.0, 1.0]}
            | _tokens("<b>", "c", "d"),
            text
            | {"place": "a:3", "rank": 1, "mean": 4.0, "sum": 8.0, "kl": [NAN, 8.0, 0.0]}
            | _tokens("<b>", "e", "f"),
        ],
        "findings": [
            {"text": index, "position": position, "kl": kl} | _NEXT
            for index, position, kl in ((2, 1, 8.0), (0, 2, 2.0), (1, 2, 1.0))
        ],
        "first": [
            {
                "dataset": "chat",
                "layer": 2,
                "position": 0,
                "num_texts": 3,
                "norm": 1.5,
                "norm_base": 9.0,
                "tokens_base": [" help"],
                "tokens_chat": [" help", " sorry"],
            }
        ],
        "continuations": [
            {"dataset": "chat", "place": "a:3", "kl": 9.5, "base_text": "the fox", "chat_text": "Sorry, I can't."}
            | {"base_ended": 0, "chat_ended": 1}
            | _tokens("<b>", "Who", "?")
        ],
    }


def write_look(home: Path, name: str, pair: PairManifest | None = None, **changed: Any) -> LookManifest:
    """Writes a look of a pair of four layers that recommends layer 2."""
    folder = Path(look_folder(home, name))
    folder.mkdir(parents=True, exist_ok=True)
    rows, hashes = _rows(), {}
    for file, columns in TABLES.items():
        pq.write_table(pa.Table.from_pylist(rows[Path(file).stem], schema=arrow_schema(columns)), folder / file)
        hashes[file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    manifest = LookManifest(
        name=name,
        pair=pair or PairManifest("p", "/models/base", "/models/chat", "/models/chat"),
        hashes=hashes,
        recipe={"kind": "look", "name": name},
        num_layers=4,
        layers=(0, 1, 2, 3),
        datasets=("chat",),
        num_tokens=6,
        num_texts=3,
        num_folded=1,
        sweep_tokens=3,
        sweep_texts=3,
        figures={"mean_kl": 2.0, "mean_kl_se": 0.5, "max_kl": 8.0, "share_top": 0.66, "sum_kl": 12.0},
        recommended_layer=2,
        reason="Layer 2 of 4 is the lowest swept layer that carries enough.",
        unavailable={"logit_lens_base": "it has none"},
        skipped={"chat": {"empty": 2}},
        created_at=time.time() + 10,
    )
    manifest = replace(manifest, **changed)
    (folder / MANIFEST).write_text(manifest_text(manifest))
    return manifest
