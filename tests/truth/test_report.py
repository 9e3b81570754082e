"""One small run of everything, and the form of its figures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bench.truth.__main__ import main
from bench.truth.planted import PlantedSpec
from bench.truth.report import VARIANTS, Result, cell, report, table
from bench.truth.run import Sizes, Variant, run, same_in_both

SMALL = PlantedSpec(d_model=24, num_shared=10, num_rotated=4, num_weak=4, num_base_only=4, num_chat_only=4)
SIZES = Sizes(
    steps=1200,
    batch_size=256,
    num_latents=52,
    analysis_tokens=8192,
    lr=5e-3,
    warmup_steps=20,
    dead_after_tokens=20_000,
)


def test_a_small_run_finds_most_of_what_was_planted():
    written: list[str] = []
    report([Variant("batch_topk", {"variant": "batch_topk", "k": 1})], [0], SIZES, SMALL, written.append)
    line = json.loads(written[0])
    assert (line["name"], line["variant"], line["seed"]) == ("truth", "batch_topk", 0)
    assert line["sizes"]["steps"] == 1200
    assert line["planted"]["num_weak"] == 4
    assert line["commit"]
    assert line["hardware"]
    assert line["recovered_all"] >= 0.85
    assert line["recovered_base_only"] == line["recovered_chat_only"] == 1.0
    assert line["auroc_chat_only_rel_norm"] >= 0.95
    assert line["auroc_base_only_nu_err"] >= 0.95
    assert line["labels_genuine"] >= 3
    assert line["labels_artefact"] == 0
    assert line["genuine_supported"] >= 3
    assert line["weak_nu_err_right"] >= 0.75
    assert line["null_chat_only"] == 0
    text = "".join(written[1:])
    assert "| recovered_all" in text
    assert "26 planted latents, width 24 per model; 52 latents, 1200 steps of 256" in text


def test_a_dictionary_of_differences_finds_what_differs_and_sees_nothing_of_the_shared():
    spec = PlantedSpec(d_model=24, num_shared=4, num_rotated=0, num_weak=8, num_base_only=8, num_chat_only=8)
    # Of seeds 0 to 5 this one has the smallest ratio AUROC, 0.96.
    figures = run(Variant("diff_sae", {"variant": "diff_sae", "k": 1}), 4, SIZES, spec)
    assert "recovered_shared" not in figures
    assert figures["recovered_chat_only"] >= 0.75
    assert figures["recovered_base_only"] >= 0.75
    assert figures["auroc_chat_only_ratio"] >= 0.9
    assert 0 < figures["genuine_supported"] <= figures["labels_genuine"]
    assert math.isnan(figures["auroc_chat_only_rel_norm"])
    assert figures["fve_difference"] > 0.9
    assert "null_chat_only" not in figures


def test_the_null_test_plants_as_many_latents_all_shared():
    null = same_in_both(SMALL)
    assert null.num_latents == null.num_shared == 26


def test_shares_grow_with_the_dictionary():
    specs = {variant.name: [variant.spec(latents) for latents in (512, 192)] for variant in VARIANTS}
    assert [spec.num_delta for spec in specs["delta"]] == [128, 48]
    assert [spec.num_shared for spec in specs["designated"]] == [64, 24]
    assert [spec.num_chat_only for spec in specs["dfc"]] == [40, 40], "by how many there are to find"


def test_a_cell_is_the_mean_of_defined_values():
    assert cell([0.5]) == "0.5"
    assert cell([0.5, 0.5]) == "0.5"
    assert cell([0.0, math.nan, 1.0]) == "0.5 [0, 1]"
    assert cell([math.nan]) == cell([]) == "-"


def test_the_table_has_a_row_a_figure_and_a_column_a_variant():
    results = [
        Result("a", 0, {"x": 1.0}),
        Result("b", 0, {"x": 3.0, "y": 2.0}),
        Result("a", 1, {"x": 2.0}),
    ]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in table(results)]
    assert rows[0] == ["figure", "a", "b"]
    assert rows[2:] == [["x", "1.5 [1, 2]", "3"], ["y", "-", "2"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "0"],
        ["--processes", "0"],
        ["--steps", "-1"],
        ["--first-seed", "-1"],
        ["--variants", "dense"],
        ["--latents", "79", "--variants", "dfc"],
        ["--table", "nowhere.jsonl"],
    ],
)
def test_arguments_that_make_no_run_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_lines_that_were_written_make_the_same_table_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written: list[str] = []
    sizes = replace(SIZES, steps=20, analysis_tokens=4096)
    variants = [Variant("batch_topk", {"variant": "batch_topk", "k": 1}), Variant("l1", {"variant": "l1", "mu": 0.1})]
    report(variants, [3, 4], sizes, SMALL, written.append)
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(written))
    main(["--table", str(path)])
    assert capsys.readouterr().out.strip() in "".join(written)
    path.write_text('{"name": "truth"}\n')
    with pytest.raises(SystemExit):
        main(["--table", str(path)])
    assert "line 1 is no result of a report" in capsys.readouterr().err
