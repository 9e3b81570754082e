"""`make bench-gpu`: sections run as processes, their rows are kept whatever ends them, the table names each bound."""

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_waiting import until

from bench.gpu import __main__ as command
from bench.gpu import schedule, table, tests
from bench.gpu.reach import REACH, Reach
from bench.gpu.rows import LOCK, MOST_CHARACTERS, Run, main, waits_at
from bench.gpu.schedule import ROOT, Ended, run_all
from bench.gpu.sections import SECTIONS, Section

MACHINE = command.Machine(
    "abc", "NVIDIA H100 80GB HBM3", "580", "2.11", "3.6", "5.17", "3.12", "2026-11-27T14:00:00+00:00"
)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_section_writes_rows_and_says_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def rows(run: Run) -> None:
        run.row("online.1x64", 12.34567, "ms", p95_ms=20.000001)
        run.part("online.32x64", lambda: 1 / 0)
        run.part("online.slow", lambda: time.sleep(60), limit_s=0.03)
        run.row("online.odd", float("nan"), "ms")
        assert run.part("online.kept", lambda: 7) == 7
        run.row("other", 1, "ms", long=["x" * 100] * 100)
        raise ValueError("at the end")

    assert main("online", rows, ["--dry", "--out", str(tmp_path / "rows")]) == 1
    found = lines_of(capsys)
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == found
    first, divided, slow, odd, long, last = found
    assert first == {"row": "online.1x64", "value": 12.346, "unit": "ms", "reach": 10, "detail": {"p95_ms": 20.0}}
    assert divided["error"] == "ZeroDivisionError: division by zero"
    assert divided["at"][-1].startswith("test_gpu.py:")
    assert slow == {"row": "online.slow", "error": "broken off after 0 s"}
    assert odd == {"row": "online.odd", "error": "the value is nan"}
    assert long["value"] == 1
    assert len(json.dumps(long)) < MOST_CHARACTERS
    assert "characters of detail" in long["detail"]["left_out"]
    assert (last["row"], last["error"]) == ("online", "ValueError: at the end")


def test_a_row_in_another_unit_than_its_bound_is_refused():
    with pytest.raises(ValueError, match=r"online.1x64 is given in s, but its bound in ms"):
        Run(dry=True).row("online.1x64", 1.0, "s")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_row_that_means_nothing_on_a_cpu_says_so(capsys: pytest.CaptureFixture[str]):
    Run(dry=True).row("memory.lowest", 1.0, "times", "torch counts no peak on a CPU", estimate_gib=2.0)
    assert json.loads(capsys.readouterr().out)["detail"] == {
        "means_nothing": "torch counts no peak on a CPU",
        "estimate_gib": 2.0,
    }


def test_without_a_device_a_section_points_to_the_dry_run(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main("online", lambda _: None, [])
    assert "no CUDA device; --dry runs" in capsys.readouterr().err


def hold(lock: str, use: Any, may_end: Any, taken: Any) -> None:
    os.environ[LOCK] = lock
    run = Run(dry=False)
    run.sync = lambda: None  # No device is needed to take turns.
    with run.turn(use):
        taken.put((use, time.monotonic()))
        may_end.wait()
        taken.put((f"{use} ended", time.monotonic()))


def test_parts_that_measure_are_alone_and_checks_are_not(tmp_path: Path):
    lock, spawn = str(tmp_path / "device"), multiprocessing.get_context("fork")
    taken: Any = spawn.SimpleQueue()
    may_end = spawn.Event()

    def start(use: str) -> Any:
        process = spawn.Process(target=hold, args=(lock, use, may_end, taken))
        process.start()
        return process

    started = [start("beside"), start("beside")]
    order = [taken.get()[0], taken.get()[0]]
    started.append(start("alone"))
    until(waits_at(lock, started[-1].pid).exists)
    started.append(start("beside"))
    may_end.set()
    order += [taken.get()[0] for _ in range(6)]
    for each in started:
        each.join()
    expected = ["beside", "beside", "beside ended", "beside ended", "alone", "alone ended", "beside", "beside ended"]
    assert order == expected
    assert not list(tmp_path.glob("*.waits"))


@pytest.fixture
def sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs small sections given as source text; returns their lines, and how each ended."""
    (tmp_path / "bench" / "gpu").mkdir(parents=True)
    monkeypatch.setattr(schedule, "ROOT", tmp_path)

    def run(sources: dict[str, str], seconds: float = 30, limit_s: float = 20, gib: float = 1):
        for name, source in sources.items():
            (tmp_path / "bench" / "gpu" / f"{name}.py").write_text(textwrap.dedent(source))
        lines: list[tuple[str, str]] = []
        ended: list[Ended] = []
        given = [Section(name, "", limit_s, gib) for name in sources]
        run_all(
            given,
            seconds,
            ["--dry"],
            lambda section, line: lines.append((section.name, line.strip())),
            lambda section, line: lines.append((f"{section.name} log", line.strip())),
            ended.append,
        )
        return lines, {each.section.name: each for each in ended}

    return run


def test_what_ends_a_section_takes_no_other_rows(sections: Any):
    lines, ended = sections(
        {
            "good": "print('a'); print('b')",
            "hangs": "import subprocess, time; print('before', flush=True); subprocess.run(['sleep', '60'])",
            "dies": "import os; print('last', flush=True); os.abort()",
            "fails": "import sys; print('said', file=sys.stderr); sys.exit(1)",
        },
        limit_s=2,
    )
    assert {("good", "a"), ("good", "b"), ("hangs", "before"), ("dies", "last"), ("fails log", "said")} <= set(lines)
    assert ended["good"].why is ended["fails"].why is None
    assert ended["dies"].why == "ended by SIGABRT"
    assert ended["hangs"].why == "ended at its limit or that of all, after 2 s"


def test_sections_wait_for_memory(sections: Any):
    _, ended = sections({"first": "import time; time.sleep(0.3)", "second": ""}, gib=50)
    assert ended["second"].began_s >= ended["first"].took_s


def test_checks_begin_when_all_that_is_measured_has_ended_and_time_is_left_to_them(
    sections: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(schedule, "CHECKED_S", 4.0)
    monkeypatch.setattr(schedule, "LEAST_S", 1.5)
    sleeps = "import os, time; print(os.environ.get('OMP_NUM_THREADS')); time.sleep(0.2)"
    given = {
        "check": ("checked", sleeps),
        "first": ("measured", sleeps),
        "long": ("measured", "import time; time.sleep(60)"),
    }
    for name, (_, source) in given.items():
        (tmp_path / "bench" / "gpu" / f"{name}.py").write_text(source)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    lines: list[tuple[str, str]] = []
    ended: list[Ended] = []
    run_all(
        [Section(name, "", 60, 1, kind, is_alone=name == "first") for name, (kind, _) in given.items()],
        10,
        ["--dry"],
        lambda section, line: lines.append((section.name, line.strip())),
        lambda *_: None,
        ended.append,
    )
    assert [each.section.name for each in ended] == ["first", "long", "check"]
    first, long, check = ended
    assert long.began_s >= first.took_s
    assert long.why is not None
    assert long.began_s + long.took_s < 10 - 4 + 1
    assert check.began_s >= long.began_s + long.took_s
    assert check.why is None
    assert lines == [("first", "None"), ("check", "2")]


def test_no_section_is_begun_late(sections: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "LEAST_S", 29.5)
    _, ended = sections({"first": "import time; time.sleep(1)", "second": ""}, seconds=30, gib=50)
    assert ended["first"].why is None
    assert ended["second"].why == "not begun: no time left"


def test_output_is_bounded_and_what_is_left_out_is_counted(sections: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "MOST_LINES", 3)
    lines, _ = sections({"much": "for i in range(10): print(i)"})
    assert [line for _, line in lines] == ["0", "1", "2", "(7 more lines were left out)"]


def test_results_are_written_line_by_line_and_a_silent_section_is_an_error(tmp_path: Path):
    with closing(command.Record(MACHINE, tmp_path / "results.jsonl")) as record:
        check_record(record)


def check_record(record: command.Record):
    section, silent = Section("online", "", 1, 1), Section("step", "", 1, 1)
    record.line(section, '{"row": "online.1x64", "value": 9.5, "unit": "ms", "reach": 10, "detail": {}}')
    assert table.read(record.path).rows["online.1x64"]["card"] == "NVIDIA H100 80GB HBM3"
    record.line(section, "no row\n")
    record.line(section, '{"neither": 1}')
    record.end(Ended(section, 0, 1))
    assert not record.failed
    record.log(silent, "No module named x\n")
    record.end(Ended(silent, 0, 1))
    assert record.failed
    assert table.read(record.path).errors == {"step": "no row came of it; last in the log: No module named x"}
    logged = record.path.with_suffix(".log").read_text().splitlines()
    assert logged == ["online: no row", 'online: {"neither": 1}', "step: No module named x"]


def test_files_are_named_by_date_and_card():
    assert MACHINE.stem == "2026-11-27-h100"


def test_the_table_names_every_bound_and_why_a_row_is_missing():
    rows = {
        "online.1x64": {"row": "online.1x64", "value": 9.5, "unit": "ms"},
        "online.32x64": {"row": "online.32x64", "value": 41.0, "unit": "ms"},
        "peaks.copy": {"row": "peaks.copy", "value": 3012.0, "unit": "GB/s", "detail": {"ms": 2.9}},
    }
    errors = {"step.l1": "ValueError: too few", "train": "ended by SIGKILL"}
    before = table.Results({"online.1x64": {"row": "online.1x64", "value": 32.45, "unit": "ms"}}, {})
    found = table.table(table.Results(rows, errors), before)
    bounded = {each.row: line for each, line in zip(REACH, found[-len(REACH) :], strict=True)}
    assert bounded["online.1x64"].split()[-6:] == ["9.5", "32.45", "<=", "10", "ms:", "met"]
    assert bounded["online.32x64"].endswith("<= 40 ms: NOT MET")
    assert bounded["step.l1.bf16"].endswith("<= 16 ms: ValueError: too few")
    assert bounded["train.end_to_end"].endswith(": ended by SIGKILL")
    assert bounded["analysis.pass"].endswith(": no line of it came")
    assert any(line.startswith("peaks.copy") and "3,012" in line for line in found)
    assert all("MET" not in line for line in table.table(table.Results(rows, errors), before, dry=True))


def test_a_bound_is_met_on_its_own_side():
    assert Reach("a", "", "ms", "at_most", 10).met(10)
    assert not Reach("a", "", "ms", "at_least", 10).met(9.9)


def test_the_first_run_has_a_figure_for_every_bound():
    before = table.read(table.BEFORE)
    assert {each.row for each in REACH} <= set(before.rows)
    for each in REACH:
        assert before.rows[each.row]["unit"] == each.unit


def test_every_bound_belongs_to_a_section():
    assert {each.row.partition(".")[0] for each in REACH} <= {each.name for each in SECTIONS}


FILES = [Path(f"tests/{name}.py") for name in "abc"]
SAID = [
    "tests/a.py::one[x y] PASSED                     [ 20%]",
    "tests/a.py::two FAILED                          [ 40%]",
    "tests/b.py::three SKIPPED (no CUDA device)      [ 60%]",
]


def test_pytest_s_lines_are_read():
    summary = ["FAILED tests/a.py::two - x", "ERROR tests/c.py - SyntaxError", "1 failed, 1 passed, 1 error in 4.00s"]
    a, b, c = tests.read(FILES, [*SAID, *summary], None)
    assert (a.passed, a.failed, a.skipped, a.first, a.error) == (1, 1, 0, ("FAILED tests/a.py::two - x",), None)
    assert (b.passed, b.failed, b.skipped, b.error) == (0, 0, 1, None)
    assert (c.failed, c.first, c.error) == (1, ("ERROR tests/c.py - SyntaxError",), None)
    *_, none = tests.read(FILES, SAID, None)
    assert none.error == f"no test of it was run: {' / '.join(SAID)}"[: len(none.error or "")]


def test_a_process_that_dies_says_in_which_test_and_what_was_not_begun():
    a, b, c = tests.read(FILES, [*SAID, "tests/b.py::four Fatal Python error: Aborted"], "pytest ended with status -6")
    assert (a.failed, a.error) == (1, None)
    assert (b.error or "").startswith("pytest ended with status -6 in four Fatal Python error: Aborted: ")
    assert (c.error or "").startswith("pytest ended with status -6 before it was begun: ")


def test_the_files_with_marked_tests_are_found():
    assert Path("tests/worker/dictionary/test_kernels.py") in tests.marked()
    assert Path("tests/bench/test_gpu.py") not in tests.marked()


def dry_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "bench.gpu", "--dry", "--out", str(folder), "--commit", "x", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_dry_run_measures_and_prints_the_table(tmp_path: Path):
    done = dry_run(tmp_path, "--only", "peaks")
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = tmp_path.glob("*-cpu.jsonl")
    rows = table.read(path).rows
    assert {"peaks.square.bf16", "peaks.encoder.float32", "peaks.copy.device"} <= set(rows)
    assert all(row["commit"] == "x" and row["value"] > 0 for row in rows.values())
    for each in REACH:
        assert each.what in done.stdout
