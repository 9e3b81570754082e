"""The frame of `make stress`: which files it runs, and how it reads what they print."""

import pytest

from tests.stress.__main__ import files, run
from tests.stress.rows import Row, read, table


def test_rows_come_out_of_any_output(tmp_path, capfd):
    script = tmp_path / "one.py"
    script.write_text(
        "from tests.stress.rows import minutes, say\nprint('{\"row\": 1}')\nsay('α', minutes(), 'min', '0.5', True)\n"
        "raise SystemExit(3)\n"
    )
    [row, failed] = run(script, 0.5)
    assert row == Row("α", 0.5, "min", "0.5", ok=True)
    assert (failed.row, failed.value, failed.ok) == ("one", "exit code 3", False)
    assert '{"row": 1}' in capfd.readouterr().err


@pytest.mark.parametrize("line", ["", "[1]", "null", "{}", '{"row": "a", "value": 1}', "passed"])
def test_what_is_no_row(line):
    assert read(line) is None


def test_a_table_says_what_was_missed():
    text = table([Row("a", 1.23456, "s", "< 1", ok=False), Row("b", 3, "", "3", ok=True)])
    assert text.splitlines()[2:] == ["| a | 1.235 | s | < 1 | MISSED |", "| b | 3 |  | 3 | ok |"]


def test_files_are_chosen_by_a_word():
    everything = files([])
    assert all(path.stem != "rows" for path in everything)
    assert files(["no such file"]) == []
