"""Words about latents in the SDK and on the command line, against the real server."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from crosscope import AsyncClient, Client, Conflict, Crosscoder, InvalidInput, NotFound, StaleWrite
from crosscope._annotation_files import flat, read, write
from crosscope._names import latent_name
from crosscope.cli import run
from tests.client.conftest import FIXTURES, running_server

Cli = Callable[..., tuple[int, str, str]]
HOSTILE = [
    "=1+1",
    "'=1",
    "''",
    "+x",
    "-x",
    "@x",
    "\u202eevil\u202c",
    "a\u200bb",
    "👩‍👩‍👧",
    "é" * 200,
    '";,',
    " padded ",
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, whose words no other test reads: the crosscoders "demo" and "other" of 60 latents."""
    home = tmp_path_factory.mktemp("home")
    for name in ("other", "demo"):
        subprocess.run([sys.executable, FIXTURES, home, name, "60"], check=True, capture_output=True)
    with running_server(home) as found:
        yield found


@pytest.fixture
def demo(address: str) -> Iterator[Crosscoder]:
    with Client(address, author="ada") as client:
        found = client.crosscoder("demo")
        yield found
        for each in found.annotations.all():
            found.annotations.label(each.latent, None)
            found.annotations.label(each.latent, None, by_program="")
            found.annotations.note(each.latent, None)
            found.annotations.star(each.latent, False)
        for named in found.annotations.lists():
            found.annotations.delete_list(named.name)


@pytest.fixture
def cli(address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command: (exit code, stdout, stderr)."""
    monkeypatch.setenv("CROSSCOPE_ADDRESS", address)
    monkeypatch.setenv("CROSSCOPE_AUTHOR", "eve")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_words_are_written_read_and_printed(demo: Crosscoder) -> None:
    words = demo.annotations
    assert words.get(7).text == ""
    assert words.label(7, "refusals").label.author == "ada"
    words.note(7, "fires where the\nanswer begins")
    found = words.star(7)
    for part in ("refusals", "by ada", "the↵answer begins"):
        assert part in str(found)
    assert "refusals" in found._repr_html_()
    words.label(7, "said by a program", by_program="some-model", scores={"detection": 0.5})
    assert words.get(7).text == "refusals", "a person goes before a program"
    assert words.get(7).automatic_label.scores == {"detection": 0.5}
    assert (demo.latent(7).label, demo.latent(7).is_starred, demo.latent(7).name) == ("refusals", True, "refusals")
    assert "★ refusals" in str(demo.latents("label contains REFUS"))
    assert [each.latent for each in words.all("ANSWER")] == [7]
    listed = words.all(is_starred=True)
    assert (listed.num_labelled, listed.num_starred, listed.num_noted, listed.num_matching) == (1, 1, 1, 1)
    assert "★" in str(listed)
    words.star(7, False)
    words.label(7, "")
    history = words.history(7)
    assert [(each.what, each.before, each.after) for each in history][:2] == [
        ("label", "refusals", None),
        ("star", "", None),
    ]
    assert "automatic label" in str(history)
    assert len(words.history(7, limit=2)) == 2


def test_a_stale_write_says_what_is_there(demo: Crosscoder) -> None:
    seen = demo.annotations.label(1, "first").label.revision
    demo.annotations.label(1, "second", seen=seen)
    with pytest.raises(StaleWrite, match=r"'second'.*'third'") as caught:
        demo.annotations.label(1, "third", seen=seen)
    assert caught.value.now == "second"
    assert demo.annotations.label(1, "third", seen=caught.value.revision).text == "third"
    with pytest.raises(InvalidInput, match="200 characters"):
        demo.annotations.label(1, "x" * 201)


def test_lists_keep_their_order(demo: Crosscoder) -> None:
    words = demo.annotations
    assert words.create_list("mine", [9, 3, 50]).num_latents == 3
    assert words.members("mine") == (9, 3, 50)
    words.add("mine", [3, 4])
    words.remove("mine", [9, 10])
    assert words.rename_list("mine", "ours").name == "ours"
    assert words.members("ours") == (3, 50, 4)
    assert [latent.id for latent in demo.latents("list = ours", order_by="list")] == [3, 50, 4]
    assert [(each.name, each.num_latents, each.author) for each in words.lists()] == [("ours", 3, "ada")]
    with pytest.raises(Conflict, match="already"):
        words.create_list("ours")
    with pytest.raises(NotFound, match="there are 'ours'"):
        words.members("mine")
    assert words.get(3).lists == {"ours": 1}


def test_names_are_labels_or_peaks(demo: Crosscoder) -> None:
    demo.annotations.label(2, "bread")
    names = demo.annotations.names([3, 2, 3])
    assert list(names) == [3, 2]
    assert str(names[2]) == "bread"
    latent = demo.latent(3)
    assert latent.name == str(names[3])
    peak = latent.peak_context[1].strip() or "↵"
    assert f"**{peak}**" in latent.name


@pytest.mark.parametrize(
    ("context", "name"),
    [
        (("I", " cannot", " help"), "I **cannot** help"),
        (("", "Sorry", ", but"), "**Sorry**, but"),
        (("<start_of_turn>model\n", "I", ""), "…t_of_turn>model↵**I**"),
        (("end", "\n", " of"), "end**↵** of"),
        (("a", "  ", "b"), "a**␣␣**b"),
        (("x" * 30, " peak", "y" * 30), f"…{'x' * 15} **peak**{'y' * 16}…"),
    ],
)
def test_a_name_from_the_text_around_a_peak(context: tuple[str, str, str], name: str) -> None:
    assert latent_name("", context, ()) == name
    assert latent_name("a label", context, ()) == "a label"


def test_a_name_without_a_text_has_tokens() -> None:
    assert latent_name("", (), (" cannot", " can", "", "x")) == "**cannot**, **can**"
    assert latent_name("", (), ()) == ""
    assert latent_name("", ("", "", ""), ("a",)) == "**a**"


def test_files_are_read_back_exactly(demo: Crosscoder, address: str, tmp_path: Path) -> None:
    words = demo.annotations
    for latent, text in enumerate(HOSTILE):
        words.label(latent, text)
        words.note(latent, f"{text}\r\n\tsecond line\n")
    words.star(3)
    words.label(4, "by a program", by_program="m", scores={"fuzzing": 0.25})
    words.create_list("=list", [5, 2, 9])
    words.create_list("empty")
    rows = words.export(tmp_path / "words.json")
    words.export(tmp_path / "words.csv")
    frame = rows.to_pandas()
    assert repr(rows) == f"{len(HOSTILE)} latents with words, 2 lists"
    assert read(tmp_path / "words.json") == list(rows)
    assert read(tmp_path / "words.csv") == list(rows)
    for line in pd.read_csv(tmp_path / "words.csv", dtype=str, keep_default_na=False).to_numpy().tolist():
        assert not [cell for cell in line if cell[:1] in "=+-@\t\r" and cell], "no cell runs in a spreadsheet"
    with Client(address, author="eve") as client:
        other = client.crosscoder("other").annotations
        assert other.import_(tmp_path / "words.csv").num_skipped == len(rows), "it is another dictionary"
        report = other.import_(tmp_path / "words.csv", any_weights=True, dry_run=True)
        assert (report.num_added, report.num_lists, report.dry_run) == (2 * len(HOSTILE) + 2, 2, True)
        assert "would be added" in str(report)
        assert not other.all()
        other.import_(tmp_path / "words.csv", any_weights=True)

        def of(exported: object) -> list[dict[str, object]]:
            return [{name: value for name, value in row.items() if name != "weights"} for row in exported]  # pyright: ignore[reportGeneralTypeIssues]

        assert of(other.export()) == of(rows)
        for source in (tmp_path / "words.json", frame, rows):
            again = other.import_(source, any_weights=True)
            assert (again.num_added, again.num_skipped, again.num_members) == (0, 0, 0)
            assert again.num_unchanged == 2 * len(HOSTILE) + 2


def test_an_import_keeps_what_people_said(demo: Crosscoder) -> None:
    words = demo.annotations
    words.label(1, "mine")
    rows = pd.DataFrame({"latent": [1, 2, 99], "label": ["theirs", "new", "beyond"]})
    report = words.import_(rows)
    assert (report.num_added, report.num_skipped) == (1, 2)
    assert [str(each).partition(";")[0] for each in report.skipped] == [
        "row 0: the label of latent 1: it has another label already, by ada",
        "row 2: the row of latent 99: demo has no latent 99",
    ]
    assert words.import_(rows, replace=True).num_replaced == 1
    assert words.get(1).text == "theirs"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", "", "must end in .json or .csv"),
        ("a.json", "{}", "no export of words"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"format": "crosscope annotations", "version": 9}', "this client reads 1"),
        ("a.json", '{"format": "crosscope annotations", "version": 1, "rows": [{}]}', "either latent or list"),
        ("a.csv", "label\nx\n", "needs a column latent"),
        ("a.csv", "latent,label\nseven,x\n", r"rows\[0\].*seven"),
        ("missing.csv", None, "cannot read"),
    ],
)
def test_a_file_that_is_no_export_is_refused(
    demo: Crosscoder, tmp_path: Path, name: str, content: str | None, match: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=match):
        demo.annotations.import_(tmp_path / name)


def test_a_large_import_goes_in_pieces(demo: Crosscoder) -> None:
    rows = [{"latent": latent % 60, "note": {"text": "é" * 10_000}} for latent in range(300)]
    report = demo.annotations.import_(rows)
    assert (report.num_rows, report.num_added, report.num_unchanged) == (300, 60, 240)


def test_flat_rows_have_every_column(tmp_path: Path) -> None:
    assert flat({"weights": "w", "list": "l"})["lists"] == '{"l": null}'
    write(tmp_path / "empty.csv", [], "demo")
    assert read(tmp_path / "empty.csv") == []


async def test_asynchronous_words(demo: Crosscoder, address: str) -> None:
    async with AsyncClient(address, author="bob") as client:
        words = (await client.crosscoder("demo")).annotations
        assert (await words.label(5, "async")).label.author == "bob"
        await words.create_list("l", [5])
        assert await words.members("l") == (5,)
        report = await words.import_(await (await client.annotations("demo")).export())
        assert report.num_unchanged == 1
    assert demo.latent(5).label == "async"


def test_the_author_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSCOPE_AUTHOR", "eve")
    assert Client("h:1")._transport.connection.author == "eve"
    monkeypatch.delenv("CROSSCOPE_AUTHOR")
    monkeypatch.setenv("LOGNAME", "login")
    assert Client("h:1")._transport.connection.author == "login"
    with pytest.raises(InvalidInput, match="at most 100 characters"):
        Client("h:1", author="x" * 101)


def test_label_on_the_command_line(demo: Crosscoder, cli: Cli) -> None:
    code, out, _ = cli("label", "demo", "40", "refusals", "--star", "--note", "a note")
    assert code == 0
    assert "refusals  (by eve" in out
    assert json.loads(cli("label", "demo", "40", "--json")[1])["star"]["author"] == "eve"
    code, _, error = cli("label", "demo", "40", "x", "--seen", "0")
    assert code == 1
    revision = demo.annotations.get(40).label.revision
    assert f"now it is 'refusals', by eve (revision {revision}); yours says 'x'. Nothing was changed" in error
    cli("label", "demo", "40", "--clear", "--no-star")
    assert demo.annotations.get(40).text == ""
    assert cli("label", "demo", "40", "x", "--clear")[0] == 2
    assert "★" not in cli("annotations", "list", "demo")[1]
    out = cli("annotations", "history", "demo", "40")[1]
    assert out.splitlines()[0].split() == ["when", "who", "what", "before", "after"]
    assert [line.split()[3] for line in out.splitlines()[1:6]] == ["star", "label", "star", "note", "label"]


def test_lists_on_the_command_line(demo: Crosscoder, cli: Cli) -> None:
    demo.annotations.label(12, "bread")
    assert cli("lists", "demo", "mine", "--create", "--add", "7,12,3")[0] == 0
    out = cli("lists", "demo", "mine")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["latent", "7", "12", "3"]
    assert "bread" in out
    cli("lists", "demo", "mine", "--rename", "ours", "--remove", "12")
    assert json.loads(cli("lists", "demo", "--json")[1])[0]["num_latents"] == 2
    assert "ours" in cli("lists", "demo")[1]
    assert cli("lists", "demo", "ours", "--add", "x")[0] == 2
    assert cli("lists", "demo", "ours", "--delete")[1] == "deleted ours, which had 2 latents\n"
    assert "no list yet" in cli("lists", "demo")[1]


def test_export_and_import_on_the_command_line(demo: Crosscoder, cli: Cli, tmp_path: Path) -> None:
    demo.annotations.label(3, "refusals")
    file = str(tmp_path / "words.csv")
    assert cli("annotations", "export", "demo", file)[1] == f"{file}: 1 latent with words, 0 lists\n"
    demo.annotations.label(3, "mine")
    code, out, _ = cli("annotations", "import", "demo", file, "--dry-run")
    assert (code, out.splitlines()[1]) == (
        0,
        "row 0: the label of latent 3: it has another label already, by ada",
    )
    assert json.loads(cli("annotations", "import", "demo", file, "--replace", "--json")[1])["num_replaced"] == 1
    assert "refusals" in cli("annotations", "list", "demo", "--text", "REF")[1]
    assert cli("annotations", "list", "demo", "--list", "no")[0] == 1
