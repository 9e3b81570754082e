"""Writes complete artefact folders with random but schema-correct and self-consistent content, for tests.

    from fixtures_artefacts import write_crosscoder
    manifest = write_crosscoder(tmp_path, "demo", 256, columns={"nu_err": my_values})

Starts a server on planted data, from the repository root:

    python tests/fixtures_artefacts.py HOME [NAME [NUM_LATENTS]]
    CROSSCOPE_HOME=HOME CROSSCOPE_SERVER_LISTEN=127.0.0.1:50051 python -m crosscope_server

Knows nothing about models: crosscoder.safetensors is not written, and nothing here can answer prompts.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import CrosscoderManifest, ExampleGroup, LatentClass, PairManifest
from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from crosscope_proto.column import Column, arrow_schema
from crosscope_proto.columns import BEHAVIOUR_COLUMNS, EXAMPLE_COLUMNS, LATENT_COLUMNS, METRIC_COLUMNS, SEQUENCE_COLUMNS
from crosscope_proto.recipe import parse_recipe, recipe_dict
from crosscope_proto.roles import NUM_ROLES, TEMPLATE_ROLES, TokenRole
from crosscope_proto.scaling_columns import SCALING_DIRECTIONS, SCALING_TARGETS, beta_column

Array = NDArray[Any]

DATASETS = ("documents", "chats")
NUM_BINS = 24
TOP_EXAMPLES = 6
QUANTILES, EXAMPLES_PER_QUANTILE = 2, 2
EXAMPLES_PER_DATASET = TOP_EXAMPLES + QUANTILES * EXAMPLES_PER_QUANTILE
SILENT_EXAMPLES = 2
_SPECIAL = ["<bos>", "<start_of_turn>", "user", "model", "\n", "<end_of_turn>"]
_TEXT = """the a baker in town old river bread sorry i can not help with that hope this helps hello please count two
three red green boat sails to harbour was built stone bridge flour water salt first then finally made of"""
VOCABULARY = [*_SPECIAL, *(f" {word}" for word in _TEXT.split())]

RECIPE = """\
kind: crosscoder
name: {name}
pair: {{name: demo}}
layer: 2
data:
  - {{name: documents, source: jsonl, path: documents.jsonl, text_column: text}}
  - {{name: chats, source: jsonl, path: chats.jsonl, chat_column: turns}}
crosscoder: {{variant: batch_topk, num_latents: {num_latents}, k: 12}}
"""


def write_crosscoder(
    home: Path,
    name: str = "demo",
    num_latents: int = 256,
    *,
    seed: int = 0,
    num_sequences: int = 80,
    columns: Mapping[str, Array] | None = None,
    created_at: float = 1_700_000_000.0,
    with_behaviours: bool = True,
) -> CrosscoderManifest:
    """Writes one version of a crosscoder, makes it the current one, and gives its manifest.

    `columns` replaces scalar columns of latents.parquet by planted values, [num_latents] each. Another seed or
    created_at gives another version; another seed other weights. Every latent but the dead ones (a tenth, drawn;
    num_active 0) has EXAMPLES_PER_DATASET examples in each of DATASETS, and SILENT_EXAMPLES silent ones; its strongest
    one has the latent's max.
    """
    rng = np.random.default_rng(seed)
    version_id = hashlib.sha256(f"{name} {num_latents} {seed} {created_at}".encode()).hexdigest()[:16]
    folder = Path(layout.version_folder(home, name, version_id))
    (folder / layout.EXAMPLES).mkdir(parents=True)
    sequences = _sequences(rng, num_sequences)
    latents = _latents(rng, num_latents) | dict(columns or {})
    examples, latents["top_tokens"], latents["peak_context"] = _examples(rng, latents, sequences)
    _write(folder / layout.LATENTS, LATENT_COLUMNS, latents)
    _write(folder / layout.SEQUENCES, SEQUENCE_COLUMNS, sequences)
    _write_examples(folder / layout.EXAMPLES, num_latents, examples)
    _write(folder / layout.METRICS, METRIC_COLUMNS, _metrics())
    if with_behaviours:
        _write(folder / layout.BEHAVIOURS, BEHAVIOUR_COLUMNS, _behaviours(num_latents))
    weights = hashlib.sha256(f"{name} {num_latents} {seed}".encode()).hexdigest()
    manifest = _manifest(home, name, version_id, num_latents, latents, created_at, weights)
    (folder / layout.MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
    _write_pair(home, manifest.pair)
    current = folder.parents[1] / layout.CURRENT
    replacement = current.with_name("CURRENT.new")
    replacement.write_text(f"{version_id}\n")
    replacement.replace(current)
    return manifest


def write_rows(folder: Path, rows: NDArray[np.float32]) -> None:
    """Writes decoder rows, [latent, both], as the weights of a version, and their hash into its manifest."""
    save_file({"W_dec": np.ascontiguousarray(rows, np.float32)}, folder / layout.WEIGHTS)
    text = (folder / layout.MANIFEST).read_text()
    hashes = json.loads(text)["hashes"]
    found = hashlib.sha256((folder / layout.WEIGHTS).read_bytes()).hexdigest()
    (folder / layout.MANIFEST).write_text(text.replace(hashes[layout.WEIGHTS], found))


def _write(path: Path, columns: tuple[Column, ...], values: Mapping[str, object]) -> None:
    schema = arrow_schema(columns)
    pq.write_table(pa.table({field.name: _arrow(values[field.name], field.type) for field in schema}, schema), path)


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values.cast(kind)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))).cast(kind)
    return pa.array(values, kind)


def _sequences(rng: np.random.Generator, count: int) -> dict[str, object]:
    """Documents and chats in turn; every text has at least 12 tokens."""
    header = [1, 2, 4], [1, 3, 4]
    ids: list[list[int]] = []
    roles: list[list[int]] = []
    for i in range(count):
        row, role = [0], [int(TokenRole.BOS)]
        parts = [(-1, TokenRole.TEXT)] if i % 2 == 0 else [(0, TokenRole.USER), (1, TokenRole.ASSISTANT)]
        for speaker, content in parts:
            words = rng.integers(len(_SPECIAL), len(VOCABULARY), rng.integers(12, 40)).tolist()
            before, after = (header[speaker], [5, 4]) if speaker >= 0 else ([], [])
            row += [*before, *words, *after]
            role += [TokenRole.HEADER] * len(before) + [content] * len(words) + [TokenRole.TURN_END] * len(after)
        ids.append(row)
        roles.append([int(r) for r in role])
    return {
        "id": np.arange(count),
        "dataset": [DATASETS[i % 2] for i in range(count)],
        "token_ids": ids,
        "pieces": [[VOCABULARY[token] for token in row] for row in ids],
        "roles": roles,
    }


def _latents(rng: np.random.Generator, n: int) -> dict[str, Array]:
    dead = rng.random(n) < 0.1
    dead[0] = False
    kind = rng.choice(4, n, p=[0.1, 0.05, 0.7, 0.15])
    ratio = np.choose(kind, [rng.uniform(0, 0.15, n), rng.uniform(0, 0.15, n), rng.uniform(0.9, 1, n), rng.random(n)])
    norm_chat = np.where(kind == 1, ratio, 1.0)
    norm_base = np.where(kind == 1, 1.0, ratio)
    rel_norm = 0.5 * ((norm_chat - norm_base) / np.maximum(norm_chat, norm_base) + 1)
    frequency = np.where(dead, 0.0, 10 ** rng.uniform(-5, -1, n))
    maximum = np.where(dead, 0.0, rng.uniform(2, 40, n))
    values: dict[str, Array] = {
        "id": np.arange(n),
        "latent_class": _classes(rel_norm, dead),
        "part": np.full(n, ""),
        "norm_base": norm_base,
        "norm_chat": norm_chat,
        "rel_norm": rel_norm,
        "cosine": rng.uniform(-0.1, 1, n),
        "num_active": np.where(dead, 0, np.maximum(1, frequency * 1_000_000)).astype(np.uint64),
        "num_texts": np.where(dead, 0, 1 + np.arange(n) % 900),
        "frequency": frequency,
        "frequency_se": frequency * 0.05,
        "mean": np.where(dead, np.nan, maximum * rng.uniform(0.1, 0.6, n)),
        "mean_se": np.where(dead, np.nan, 0.1),
        "max": maximum,
    }
    for prefix in SCALING_DIRECTIONS:
        for target in SCALING_TARGETS:
            for model in ("base", "chat"):
                column = beta_column(prefix, target, model)
                values[column] = np.where(dead, np.nan, rng.uniform(0.05, 1.2, n))
                values[f"{column}_se"] = np.where(dead, np.nan, rng.uniform(0.001, 0.05, n))
        other, own = ("chat", "base") if prefix else ("base", "chat")
        for ratio_of in ("err", "rec"):
            over = (
                values[beta_column(prefix, ratio_of, other)],
                values[beta_column(prefix, ratio_of, own)],
            )
            values[f"{prefix}nu_{ratio_of}"] = np.divide(*over)
            values[f"{prefix}nu_{ratio_of}_se"] = np.where(dead, np.nan, 0.02)
    values["beta_ratio"] = np.divide(*(values[beta_column("", "act", model)] for model in ("base", "chat")))
    values |= {column.name: np.where(dead, np.nan, 0.01) for column in CAUSAL_COLUMNS}
    values["beta_ratio_se"] = np.where(dead, np.nan, 0.02)
    values["repeat_share"] = np.where(dead, np.nan, rng.random(n))
    outside = dead | (rel_norm <= 0.9)
    values["base_uselessness"] = np.where(outside, np.nan, rng.uniform(-0.5, 9, n))
    values["base_uselessness_ls"] = np.where(outside, np.nan, rng.uniform(-0.5, 11, n))
    values["base_uselessness_single"] = np.where(dead, np.nan, rng.uniform(-0.5, 11, n))
    return values | _list_columns(rng, n, dead)


def _list_columns(rng: np.random.Generator, n: int, dead: NDArray[np.bool_]) -> dict[str, Array]:
    role_shares = rng.dirichlet(np.full(NUM_ROLES - 1, 0.3), n)
    role_shares = np.concatenate([np.zeros((n, 1)), role_shares], axis=1) * ~dead[:, None]
    cosines = -np.sort(-rng.uniform(0.1, 0.99, (n, 5)), axis=1)
    return {
        "template_share": np.where(dead, np.nan, role_shares[:, sorted(TEMPLATE_ROLES)].sum(axis=1)),
        "role_shares": role_shares,
        "dataset_shares": rng.dirichlet((0.5, 0.5), n) * ~dead[:, None],
        "histogram": rng.integers(0, 1000, (n, NUM_BINS)) * ~dead[:, None],
        "logit_tokens_base": np.array(VOCABULARY)[rng.integers(len(_SPECIAL), len(VOCABULARY), (n, 5))],
        "logit_tokens_chat": np.array(VOCABULARY)[rng.integers(len(_SPECIAL), len(VOCABULARY), (n, 5))],
        "neighbours": (np.arange(n)[:, None] + np.arange(1, 6)) % n,
        "neighbour_cosines": cosines,
        "coactive": (np.arange(n)[:, None] + np.arange(2, 5)) % n,
        "coactive_indices": cosines[:, :3] / 2,
    }


def _classes(rel_norm: NDArray[np.float64], dead: NDArray[np.bool_]) -> Array:
    """math §6."""
    conditions = [dead, rel_norm > 0.9, rel_norm < 0.1, np.abs(rel_norm - 0.5) < 0.1]
    names = [LatentClass.DEAD, LatentClass.CHAT_ONLY, LatentClass.BASE_ONLY, LatentClass.SHARED]
    return np.select(conditions, [str(name) for name in names], str(LatentClass.OTHER))


def _examples(
    rng: np.random.Generator, latents: Mapping[str, Array], sequences: Mapping[str, object]
) -> tuple[dict[str, Array], Array, list[list[str]]]:
    """Rows of the example files in their order, and of each latent the top tokens and the text around its peak."""
    ids: list[list[int]] = sequences["token_ids"]  # pyright: ignore[reportAssignmentType]
    lengths = np.array([len(row) for row in ids])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    tokens = np.concatenate([np.array(row) for row in ids])
    living = np.flatnonzero(np.asarray(latents["num_active"]) > 0)
    per_dataset = EXAMPLES_PER_DATASET + SILENT_EXAMPLES
    per_latent = per_dataset * len(DATASETS)
    # Tables are sorted by name: "chats" before "documents", "quantile" before "silent" before "top".
    dataset = np.repeat(np.sort(DATASETS), per_dataset)
    half = QUANTILES * EXAMPLES_PER_QUANTILE
    sizes = [half, SILENT_EXAMPLES, TOP_EXAMPLES]
    kinds = np.repeat([str(ExampleGroup.QUANTILE), str(ExampleGroup.SILENT), str(ExampleGroup.TOP)], sizes)
    group, is_silent = np.tile(kinds, len(DATASETS)), np.tile(kinds == "silent", len(DATASETS) * len(living))
    ranks = np.concatenate([np.tile(np.arange(EXAMPLES_PER_QUANTILE), QUANTILES), *map(np.arange, sizes[1:])])
    bands = np.concatenate([np.repeat(np.arange(QUANTILES), EXAMPLES_PER_QUANTILE), np.zeros(sum(sizes[1:]), int)])
    strength = np.where(kinds == "top", 1 - 0.05 * ranks, 0.2 + 0.2 * bands - 0.05 * ranks) * (kinds != "silent")
    strengths = np.concatenate([strength, strength * 0.97])  # chats first
    n = len(living) * per_latent
    of_chats = np.tile(dataset == "chats", len(living))
    sequence = rng.integers(0, len(ids) // 2, n) * 2 + of_chats
    peak = 1 + (rng.random(n) * (lengths[sequence] - 2)).astype(int)
    maximum = np.repeat(np.asarray(latents["max"], np.float64)[living], per_latent) * np.tile(strengths, len(living))
    rows: dict[str, Array] = {
        "latent": np.repeat(living, per_latent),
        "dataset": np.tile(dataset, len(living)),
        "group": np.tile(group, len(living)),
        "quantile": np.tile(bands, len(DATASETS) * len(living)),
        "rank": np.tile(ranks, len(DATASETS) * len(living)),
        "sequence": sequence,
        "max": maximum,
        "positions": _lists([[p] if s else [p - 1, p, p + 1] for p, s in zip(peak.tolist(), is_silent, strict=True)]),
        "values": _lists(
            [[0.0] if s else [m * 0.5, m, m * 0.4] for m, s in zip(maximum.tolist(), is_silent, strict=True)]
        ),
        "repeats": np.zeros(n, np.int64),
        "group_low": maximum * 0.5,
        "group_high": maximum,
        "group_texts": np.full(n, 7),
    }
    peak_tokens = np.array(VOCABULARY)[tokens[starts[sequence] + peak]].reshape(len(living), per_latent)
    top_tokens = np.full((len(np.asarray(latents["id"])), 3), "", dtype=peak_tokens.dtype)
    first = half + SILENT_EXAMPLES
    top_tokens[living] = peak_tokens[:, first : first + 3]
    strongest = np.arange(len(living)) * per_latent + first
    contexts: list[list[str]] = [["", "", ""]] * len(np.asarray(latents["id"]))
    for latent, row in zip(living.tolist(), strongest.tolist(), strict=True):
        text, at = np.array(VOCABULARY)[ids[sequence[row]]].tolist(), int(peak[row])
        contexts[latent] = ["".join(text[max(0, at - 4) : at]), text[at], "".join(text[at + 1 : at + 5])]
    return rows, top_tokens, contexts


def _lists(rows: list[list[Any]]) -> pa.Array:
    return pa.array(rows)


def _write_examples(folder: Path, num_latents: int, rows: Mapping[str, Array]) -> None:
    schema = arrow_schema(EXAMPLE_COLUMNS)
    table = pa.table({field.name: _arrow(rows[field.name], field.type) for field in schema}, schema)
    latent = np.asarray(rows["latent"])
    per_part, per_group = layout.latents_per_part(num_latents), layout.EXAMPLE_LATENTS_PER_ROW_GROUP
    for first in range(0, num_latents, per_part):
        with pq.ParquetWriter(folder / layout.example_part(first, num_latents), schema) as writer:
            for start in range(first, min(first + per_part, num_latents), per_group):
                low, high = np.searchsorted(latent, [start, start + per_group])
                writer.write_table(table.slice(low, high - low))


def _metrics() -> dict[str, object]:
    steps = np.arange(0, 1001, 50)
    curves = {"fve_base": 0.99 - np.exp(-steps / 200), "fve_chat": 0.98 - np.exp(-steps / 200), "loss": 9 / (steps + 9)}
    return {
        "step": np.tile(steps, len(curves)),
        "name": np.repeat(list(curves), len(steps)),
        "value": np.concatenate(list(curves.values())),
    }


def _behaviours(num_latents: int) -> dict[str, object]:
    names = ["apologises", "asks-back", "closing-wish", "refuses"]
    rows = [(name, place) for name in names for place in ("decision", "within")]
    return {
        "behaviour": [name for name, _ in rows],
        "place": [place for _, place in rows],
        "latent": np.arange(len(rows)) % num_latents,
        "threshold": np.linspace(0.5, 4, len(rows)),
        "recall": np.linspace(1, 0.8, len(rows)),
        "false_rate": np.linspace(0, 0.15, len(rows)),
        "num_positive": np.full(len(rows), 40),
        "num_negative": np.full(len(rows), 160),
    }


def _manifest(
    home: Path,
    name: str,
    version_id: str,
    num_latents: int,
    latents: Mapping[str, Array],
    created_at: float,
    weights: str,
) -> CrosscoderManifest:
    folder = Path(layout.pair_folder(home, "demo"))
    pair = PairManifest("demo", str(folder / "base"), str(folder / "chat"), str(folder / "chat"))
    classes = np.asarray(latents["latent_class"]).tolist()
    return CrosscoderManifest(
        name=name,
        version_id=version_id,
        pair=pair,
        layer=2,
        d_model=(64, 64),
        num_latents=num_latents,
        variant="batch_topk",
        code_normalisation="crosscoder",
        threshold=0.3,
        input_scale=(1.0, 1.0),
        recipe=recipe_dict(parse_recipe(RECIPE.format(name=name, num_latents=max(12, num_latents)))),
        datasets=DATASETS,
        training_tokens=2_000_000,
        analysis_tokens=1_000_000,
        analysis_shards=20,
        metrics={"fve_base": 0.987, "fve_chat": 0.981, "l0": 11.8, "dead_share": classes.count("dead") / num_latents},
        class_counts={str(kind): classes.count(str(kind)) for kind in LatentClass},
        histogram_edges=tuple(float(edge) for edge in np.linspace(0, 48, NUM_BINS + 1)),
        uselessness={"steps": 500, "lr": 0.01, "start": 0.0, "floor": 1e-5},
        hashes={layout.WEIGHTS: weights},
        software={"crosscope": "0.1.0"},
        unavailable={"logit_lens_chat": "Some model has no head"},
        created_at=created_at,
    )


def _write_pair(home: Path, pair: PairManifest) -> None:
    folder = Path(layout.pair_folder(home, pair.name))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / layout.PAIR_MANIFEST).write_text(json.dumps(asdict(pair)))


if __name__ == "__main__":
    target, name, num_latents = [*sys.argv[1:], *["demo", "256"][len(sys.argv) - 2 :]]
    written = write_crosscoder(Path(target), name, int(num_latents))
    sys.stdout.write(f"{written.name} {written.version_id}\n")
