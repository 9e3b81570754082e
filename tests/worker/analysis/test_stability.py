"""Matching two dictionaries whose correspondence is known."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crosscope_proto.artefacts import CrosscoderManifest, LatentClass, PairManifest
from crosscope_worker.analysis import stability
from crosscope_worker.analysis.stability import Shares, find_version, main, match_latents
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.streams import DIFFERENCE
from tests.worker.devices import needs_gpu

ROWS = torch.tensor(
    [
        [0.0, 0.0, 1.0, 0.0],  # chat only
        [0.0, 0.0, 0.0, 2.0],  # chat only
        [3.0, 0.0, 0.0, 0.0],  # base only
        [1.0, 0.0, 1.0, 0.0],  # shared
        [0.0, 1.0, 0.0, 1.0],  # shared
        [0.0, 1.0, 0.0, 2.0],  # other
    ]
)


def crosscoder(rows: torch.Tensor, d_model: tuple[int, int] = (2, 2), **changes) -> Crosscoder:
    num_latents, both = rows.shape
    return Crosscoder(
        torch.zeros(both, num_latents), torch.zeros(num_latents), rows, torch.zeros(both), d_model, "l1", **changes
    )


def everyone(num_latents: int) -> torch.Tensor:
    return torch.ones(num_latents, dtype=torch.bool)


def test_a_shuffled_copy_is_found_again_whatever_its_lengths():
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    other = ROWS[order] * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 7.0])[:, None]
    matches = match_latents(crosscoder(ROWS), crosscoder(other), everyone(6), everyone(6))
    assert order[matches.nearest].tolist() == matches.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert matches.shares() == Shares(6, (1.0, 1.0), 1.0, pytest.approx(1.0))
    counts = {of: matches.shares(of).num_latents for of in LatentClass}
    assert counts == {"chat_only": 2, "base_only": 1, "shared": 2, "other": 1, "dead": 0}


def test_hand_computed_shares():
    """B has two rows: latents 0 and 3 are nearest to the first (cosines 1 and √½), latent 2 too (0), the rest to the
    second with cosines 1, √½ and 2/√5."""
    other = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    matches = match_latents(crosscoder(ROWS), crosscoder(other), everyone(6), everyone(2))
    assert matches.nearest.tolist() == [0, 1, 0, 0, 1, 1]
    expected = [1, 1, 0, 0.5**0.5, 0.5**0.5, 2 / 5**0.5]
    assert matches.cosines.tolist() == pytest.approx(expected)
    assert matches.mutual.tolist() == [True, True, False, False, False, False]
    assert matches.shares() == Shares(
        6, (pytest.approx(5 / 6), pytest.approx(2 / 6)), pytest.approx(2 / 6), pytest.approx(sum(expected) / 6)
    )
    assert matches.shares(LatentClass.SHARED) == Shares(2, (1.0, 0.0), 0.0, pytest.approx(0.5**0.5))


def test_a_crosscoder_and_a_dictionary_of_differences_are_compared_by_their_differences():
    """The difference dictionary has rows for chat alone; by concatenated rows its latent 0 is nearest to latent 0."""
    rows = torch.tensor([[0.0, 0.0, 1.0, 0.0], [-2.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 8.0]])
    one = crosscoder(rows, input_scale=(2.0, 4.0))  # differences in the models' scale: (¼, 0), (1, 0), (0, 0)
    difference = replace(crosscoder(torch.tensor([[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]])), streams=DIFFERENCE)
    matches = match_latents(one, difference, everyone(3), everyone(2))
    assert matches.nearest.tolist()[:2] == [0, 0]
    assert matches.cosines.tolist() == pytest.approx([1, 1, 0])
    back = match_latents(difference, one, everyone(2), everyone(3))
    assert (back.nearest.tolist()[0], back.cosines.tolist()) == (0, pytest.approx([1, 0]))


def test_dead_latents_take_no_part():
    living_a = torch.tensor([False, True, True, True, False, True])
    living_b = torch.tensor([True, False, True, True, True, True])
    matches = match_latents(crosscoder(ROWS), crosscoder(ROWS), living_a, living_b)
    assert matches.ids.tolist() == [1, 2, 3, 5]
    assert matches.nearest.tolist() == [5, 2, 3, 5]
    assert matches.mutual.tolist() == [False, True, True, True]
    assert matches.shares(LatentClass.CHAT_ONLY).num_latents == 1


def test_normalising_inputs_changes_nothing():
    plain, other = crosscoder(ROWS), crosscoder(ROWS.flip(0) + 0.1)
    scaled = crosscoder(other.W_dec * torch.tensor([4.0, 4.0, 0.5, 0.5]), input_scale=(4.0, 0.5))
    expected = match_latents(plain, other, everyone(6), everyone(6))
    found = match_latents(plain, scaled, everyone(6), everyone(6))
    torch.testing.assert_close(found.cosines, expected.cosines)
    assert found.nearest.tolist() == expected.nearest.tolist()


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    one, other = crosscoder(torch.randn(37, 6), (3, 3)), crosscoder(torch.randn(23, 6), (3, 3))
    whole = match_latents(one, other, everyone(37), everyone(23))
    products = torch.nn.functional.normalize(one.W_dec) @ torch.nn.functional.normalize(other.W_dec).T
    assert whole.nearest.tolist() == products.argmax(dim=1).tolist()
    assert whole.mutual.tolist() == [int(products[:, b].argmax()) == a for a, b in enumerate(whole.nearest)]
    monkeypatch.setattr(stability, "CHUNK_BYTES", 4 * 23 * 5)
    pieces = match_latents(one, other, everyone(37), everyone(23))
    torch.testing.assert_close(pieces.cosines, whole.cosines)
    assert (pieces.nearest.tolist(), pieces.mutual.tolist()) == (whole.nearest.tolist(), whole.mutual.tolist())


def test_what_cannot_be_matched():
    with pytest.raises(CrosscoderError, match=r"widths differ: \(2, 2\) and \(1, 3\)"):
        match_latents(crosscoder(ROWS), crosscoder(ROWS, (1, 3)), everyone(6), everyone(6))
    with pytest.raises(CrosscoderError, match="6 and 0 living latents"):
        match_latents(crosscoder(ROWS), crosscoder(ROWS), everyone(6), ~everyone(6))


def write(folder: Path, rows: torch.Tensor, num_active: list[int] | None, d_model: tuple[int, int] = (2, 2)) -> Path:
    folder.mkdir(parents=True)
    made = crosscoder(rows, d_model)
    pair = PairManifest(name="tiny", base="base", chat="chat", tokenizer="chat")
    manifest = CrosscoderManifest(
        "toy", folder.name, pair, 1, d_model, len(rows), "l1", "crosscoder", None, (1.0, 1.0), {}
    )
    made.save(folder, manifest)
    if num_active is not None:
        pq.write_table(pa.table({"num_active": pa.array(num_active, pa.uint64())}), folder / "latents.parquet")
    return folder


def test_the_command(tmp_path: Path):
    version = write(tmp_path / "toy" / "versions" / "v1", ROWS, [1, 1, 1, 1, 1, 0])
    (tmp_path / "toy" / "CURRENT").write_text("v1\n")
    other = write(tmp_path / "other", ROWS, None)
    command = [sys.executable, "-m", "crosscope_worker.analysis.stability", str(tmp_path / "toy"), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"A  {version}: 5 of 6 latents living"
    assert lines[1] == f"B  {other}: 6 of 6 latents living"
    assert lines[4].split() == ["all", "5", "100.0%", "100.0%", "100.0%", "1.000"]
    assert [line.split()[:2] for line in lines[5:]] == [
        ["chat_only", "2"],
        ["base_only", "1"],
        ["shared", "2"],
        ["other", "0"],
    ]


def failure(capsys: pytest.CaptureFixture[str], *arguments: Path) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(each) for each in arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_map_names_the_nearest_latent_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [str(write(tmp_path / name, rows, None)) for name, rows in (("a", ROWS), ("b", ROWS.flip(0)))]
    main([*folders, "--map", str(tmp_path / "map.csv")])
    assert "nearest in B" in capsys.readouterr().out
    lines = (tmp_path / "map.csv").read_text().splitlines()
    assert lines[0] == "latent,nearest,cosine,mutual,latent_class"
    assert lines[1] == "0,5,1.000000,true,chat_only"
    assert [line.split(",")[1] for line in lines[1:]] == ["5", "4", "3", "2", "1", "0"]


def test_missing_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = write(tmp_path / "good", ROWS, None)
    assert "no folder" in failure(capsys, tmp_path / "nowhere", good)
    (tmp_path / "empty").mkdir()
    assert "empty" in failure(capsys, good, tmp_path / "empty")
    (tmp_path / "empty" / "CURRENT").write_text("gone\n")
    assert "names gone, which is not there" in failure(capsys, good, tmp_path / "empty")
    assert "widths differ" in failure(capsys, good, write(tmp_path / "uneven", ROWS, None, (1, 3)))
    assert "3 rows, but the crosscoder 6 latents" in failure(capsys, good, write(tmp_path / "short", ROWS, [1, 1, 1]))
    (good / "crosscoder.json").write_text("{")
    assert "is not JSON" in failure(capsys, good, good)
    assert find_version(good) == good


def test_a_latents_table_cut_short_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write(tmp_path / "cut", ROWS, [1] * 6)
    content = (folder / "latents.parquet").read_bytes()
    (folder / "latents.parquet").write_bytes(content[:-9])
    assert "latents.parquet cannot be read" in failure(capsys, folder, folder)


def test_other_dictionaries_have_no_relative_norm():
    difference = replace(crosscoder(ROWS), streams=DIFFERENCE)
    matches = match_latents(difference, difference, everyone(6), everyone(6))
    assert set(matches.classes) == {"other"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), str(tmp_path), "--device", "cuda"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "no CUDA device is available; leave --device out\n"


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_finds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [str(write(tmp_path / name, rows, None)) for name, rows in (("a", ROWS), ("b", ROWS.flip(0) + 0.1))]
    main(folders)
    expected = capsys.readouterr().out
    main([*folders, "--device", "cuda"])
    assert capsys.readouterr().out == expected
