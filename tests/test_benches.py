"""`make bench`: every bench runs, with tiny sizes, and says what it measured against what."""

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest

from bench.__main__ import BENCHES
from bench.rows import ROOT, Figure, Floor, Row, Target
from bench.timing import Ratio, interleave
from crosscope_proto.dictionaries import VARIANTS

FIELDS = {
    *("name", "case", "sizes", "ours", "reference", "ratio", "ratio_is", "spread", "floor", "target", "met"),
    *("not_measured", "commit", "hardware", "torch_version", "threads", "date"),
}


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CROSSCOPE_ADDRESS": "unix:/nonexistent/front.sock"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one quick run of everything, behind a line that was in the file before."""
    path = tmp_path_factory.mktemp("bench") / "results" / "quick.jsonl"
    path.parent.mkdir()
    path.write_text('{"name": "kept"}\n')
    done = run_bench("--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    kept, *found = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == {"name": "kept"}
    assert len(done.stdout.splitlines()) == 1 + len(found), "a heading, and a line for each row"
    return found


@pytest.mark.slow
def test_every_bench_has_rows_with_ratios(rows: list[dict[str, Any]]) -> None:
    assert {row["name"] for row in rows} == set(BENCHES)
    for row in rows:
        assert set(row) == FIELDS
        assert row["commit"]
        assert row["hardware"]
        assert row["threads"] == 1
        assert row["target"] is None, "targets are for full sizes"
        assert row["met"] is None
        if row["name"] == "prompts":
            assert "no server answers" in row["not_measured"]
            assert row["ours"] is row["reference"] is row["ratio"] is None
            continue
        if row["name"] == "peers" and row["not_measured"]:  # installed by `make peers` only
            assert row["not_measured"].startswith("No module named")
            assert row["not_measured"].endswith("; `make peers` installs it")
            assert row["ours"] is row["reference"] is row["ratio"] is None
            continue
        assert row["not_measured"] is None
        lowest, highest = row["spread"]
        assert 0 < lowest <= highest < math.inf, row
        assert row["reference"]["what"]
        assert row["ours"]["unit"] == row["reference"]["unit"]
        quotient = row["ours"]["number"] / row["reference"]["number"]
        smaller_is_better = not row["ours"]["unit"].endswith("/s")
        expected = 1 / quotient if smaller_is_better and row["ratio_is"] == "times as fast" else quotient
        assert row["ratio"] == pytest.approx(expected)


@pytest.mark.slow
def test_the_dense_step_computes_the_same_loss_for_every_variant(rows: list[dict[str, Any]]) -> None:
    steps = [row["sizes"] for row in rows if row["name"] in ("train_step", "variants")]
    assert {sizes["variant"] for sizes in steps} == set(VARIANTS)
    for sizes in steps:
        assert sizes["loss_difference"] < 1e-5, sizes
        assert sizes["active_a_token"] > 1, sizes


@pytest.mark.slow
def test_a_pass_per_target_finds_the_same_coefficients(rows: list[dict[str, Any]]) -> None:
    (sizes,) = [row["sizes"] for row in rows if row["name"] == "latent_scaling"]
    assert sizes["beta_difference"] < 1e-4


@pytest.mark.slow
def test_padding_is_counted(rows: list[dict[str, Any]]) -> None:
    sizes = {row["case"]: row["sizes"] for row in rows if row["name"] == "harvest"}
    assert 0 < sizes["mixed lengths, to whole"]["padding_whole"] < 1
    assert sizes["equal lengths, to whole"]["padding"] == sizes["equal lengths, to whole"]["padding_whole"] == 0


def test_unknown_names_are_refused() -> None:
    done = run_bench("--only", "train_step", "trian_step")
    assert done.returncode == 2
    assert "'trian_step'" in done.stderr
    assert "latent_scaling" in done.stderr, "says what there is"
    assert done.stdout == ""


def test_the_list_names_every_bench() -> None:
    done = run_bench("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(BENCHES)


def test_contestants_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    took = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in took.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    assert Ratio.of([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == Ratio(number=4.0, lowest=2.0, highest=4.0)


def row_with(*targets: Target) -> Row:
    floor = Floor(Figure(30.0, "tokens/s", "floor"), Ratio(1.5, 1.4, 1.6))
    ours, reference = Figure(20.0, "tokens/s"), Figure(4.0, "tokens/s", "dense")
    return Row("train_step", "case", {}, ours, reference, Ratio(5.0, 4.0, 6.0), floor=floor, targets=targets)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("ratio", "at_least", 5.0), True),
        (Target("ratio", "at_least", 5.1), False),
        (Target("ours", "at_most", 19.0), False),
        (Target("ours", "at_least", 20.0), True),
        (Target("floor", "at_most", 1.5), True),
        (Target("floor", "at_most", 1.4), False),
    ],
)
def test_a_target_bounds_one_number(target: Target, met: bool) -> None:
    assert row_with(target).met() is met
    assert row_with(Target("ratio", "at_least", 1.0), target).met() is met


def test_a_row_without_targets_is_neither_met_nor_missed() -> None:
    assert row_with().met() is None
    assert Row("train_step", "case", {}, targets=(Target("ratio", "at_least", 1.0),)).met() is False
