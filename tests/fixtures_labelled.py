"""A crosscoder whose latents fire on one word each, so that what is said of them can be worked out by hand.

Every latent has 12 texts on which it fires, each with its word once, and 4 silent ones: three with the word, one
without.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fixtures_artefacts import write_crosscoder

from crosscope_proto.artefacts import (
    EXAMPLES,
    SEQUENCES,
    CrosscoderManifest,
    ExampleGroup,
    example_part,
    version_folder,
)
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import EXAMPLE_COLUMNS, SEQUENCE_COLUMNS
from crosscope_proto.verdict import FIGURES

WORDS = ("fox", "bread", "rain", "moon", "harp", "snow")
NUM_TOP, NUM_BANDS, NUM_SILENT = 6, 6, 4
NUM_FIRING = NUM_TOP + NUM_BANDS


def write_planted(home: Path, name: str = "planted") -> CrosscoderManifest:
    """Writes it. Latent 0 to 5 fires on WORDS; 0 to 4 are supported and chat-specific, the last is not judged."""
    n = len(WORDS)
    columns = {figure: np.full(n, np.nan) for figure in FIGURES if figure != "latent_class"}
    columns |= {
        "latent_class": np.array(["chat_only"] * (n - 1) + ["other"]),
        "rel_norm": np.full(n, 0.95),
        "num_active": np.arange(100, 100 - n, -1),
        "num_texts": np.full(n, 50),
        "max": np.full(n, 10.0),
    }
    for which, value in (("nu_err", 0.05), ("nu_rec", 0.1)):
        columns[which] = np.array([value] * (n - 1) + [np.nan])
        columns[f"{which}_se"] = np.array([0.01] * (n - 1) + [np.nan])
    manifest = write_crosscoder(home, name, n, num_sequences=4, columns=columns)
    folder = Path(version_folder(home, name, manifest.version_id))
    texts, examples = _tables()
    pq.write_table(pa.Table.from_pylist(texts, arrow_schema(SEQUENCE_COLUMNS)), folder / SEQUENCES)
    for path in (folder / EXAMPLES).iterdir():
        path.unlink()
    table = pa.Table.from_pylist(examples, arrow_schema(EXAMPLE_COLUMNS))
    pq.write_table(table, folder / EXAMPLES / example_part(0, n))
    return manifest


def _tables() -> tuple[list[dict], list[dict]]:
    texts: list[dict] = []
    examples: list[dict] = []
    for latent, word in enumerate(WORDS):
        kinds = [(ExampleGroup.QUANTILE, rank, True) for rank in range(NUM_BANDS)]
        kinds += [(ExampleGroup.SILENT, rank, rank > 0) for rank in range(NUM_SILENT)]
        kinds += [(ExampleGroup.TOP, rank, True) for rank in range(NUM_TOP)]
        for group, rank, has_word in kinds:
            number = len(texts)
            pieces = [" the", f" a{number}", f" {word}" if has_word else " dog", " stands", f" b{number}"]
            texts.append(
                {
                    "id": number,
                    "dataset": "documents",
                    "token_ids": list(range(len(pieces))),
                    "pieces": pieces,
                    "roles": [1] * len(pieces),
                }
            )
            largest = {ExampleGroup.TOP: 10.0 - rank, ExampleGroup.QUANTILE: 3.0, ExampleGroup.SILENT: 0.0}[group]
            examples.append(
                {
                    "latent": latent,
                    "dataset": "documents",
                    "group": str(group),
                    "quantile": 0,
                    "rank": rank,
                    "sequence": number,
                    "max": largest,
                    # A weak activation on the word behind: it fires there, and is not marked.
                    "positions": [2] if group is ExampleGroup.SILENT else [2, 3],
                    "values": [0.0] if group is ExampleGroup.SILENT else [largest, 0.1 * largest],
                    "repeats": 0,
                    "group_low": 0.0,
                    "group_high": 10.0,
                    "group_texts": 12,
                }
            )
    return texts, examples
