"""What dictionaries read and reconstruct, and how manifests say it."""

import json
from pathlib import Path

import pytest
import torch
from fixtures_crosscoders import make_crosscoder, make_manifest

from crosscope_proto.manifest import ManifestError, parse_manifest
from crosscope_worker.dictionary.crosscoder import relative_norms
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.streams import STREAMS

D_MODEL = (2, 2)
X = torch.tensor([[1.0, 2.0, 4.0, 8.0]])


@pytest.mark.parametrize("name", STREAMS)
def test_an_artefacts_encoder_reads_what_training_read(name: str):
    streams, draw = STREAMS[name], torch.Generator().manual_seed(0)
    (x, rows) = torch.randn(5, 4, generator=draw), torch.randn(3, sum(streams.widths(D_MODEL)), generator=draw)
    torch.testing.assert_close(x @ streams.place_encoder(rows).T, streams.read(x, D_MODEL) @ rows.T)
    assert torch.equal(streams.place_decoder(rows)[:, streams.columns(D_MODEL)], rows)
    assert torch.equal(torch.cat([*streams.parts(x, D_MODEL)], 1), streams.read(x, D_MODEL))


@pytest.mark.parametrize(
    ("name", "reads", "error"),
    [
        ("both", [1, 2, 4, 8], [0, 1, 3, 7]),
        ("difference", [3, 6], [None, None, 2, 5]),
        ("base", [1, 2], [0, 1, None, None]),
        ("chat", [4, 8], [None, None, 3, 7]),
    ],
)
def test_targets_by_hand(name: str, reads: list[float], error: list[float | None]):
    """Everything is reconstructed as 1."""
    streams = STREAMS[name]
    assert streams.read(X, D_MODEL).tolist() == [reads]
    found = streams.error(X, torch.ones_like(X), D_MODEL)[0]
    assert [None if value.isnan() else float(value) for value in found] == error
    assert [figure for _, figure in streams.figures] == (["base", "chat"] if name == "both" else [name])


def test_one_model_alone_has_no_relative_norm():
    assert relative_norms(make_crosscoder((4, 4), streams=STREAMS["chat"])).isnan().all()


@pytest.mark.parametrize(
    ("variant", "reads"),
    [("l1", "both"), ("topk", "both"), ("diff_sae", "difference"), ("base_sae", "base"), ("chat_sae", "chat")],
)
def test_an_older_manifest_tells_what_it_reads_by_its_variant(tmp_path: Path, variant: str, reads: str):
    crosscoder = make_crosscoder((4, 4))
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    path = tmp_path / "crosscoder.json"
    document = json.loads(path.read_text())
    assert document.pop("reads") == "both"
    path.write_text(json.dumps(document | {"variant": variant}))
    assert parse_manifest(path.read_bytes()).reads == reads
    assert load_crosscoder(tmp_path).streams is STREAMS[reads]


def test_an_unknown_reads_is_refused(tmp_path: Path):
    crosscoder = make_crosscoder((4, 4), streams=STREAMS["chat"])
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    assert load_crosscoder(tmp_path).streams is STREAMS["chat"]
    path = tmp_path / "crosscoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reads": "neither"}))
    with pytest.raises(ManifestError, match="reads: must be one of both, difference, base, chat, but is 'neither'"):
        parse_manifest(path.read_bytes())
