"""What a recipe can have read: only regular files below the allowed folders, whatever it calls them."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roots import RootError, Roots
from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.data.texts import DataError, TextStream
from crosscope_worker.models.pair import Pair
from crosscope_worker.roots import check_pair_folders, files_below, open_file
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import Workspace

OUTSIDE = r"lies outside the folders that jobs may read; they are .*home.*CROSSCOPE_WORKER_DATA_ROOTS .*--data-root"
NEVER = "is never read: what lies below /proc, /sys, /dev is no data"
TEXT = DataSpec(name="a", source="text", path="a.txt")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a file, and a private file and folder beside it."""
    for folder in ("home", "private"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(f"{folder}\n")
    return tmp_path / "home"


@pytest.fixture
def stream(home: Path, tiny_pair: Pair):
    def opened(spec: DataSpec, *more: Path, folders: tuple[Path, ...] = ()) -> TextStream:
        tokenizer = TextTokenizer(tiny_pair.tokenizer)
        return TextStream([spec], tokenizer, TokenPolicy(), [home, *folders], "train", Roots([home, *more]))

    return opened


def read(stream: TextStream, pair: Pair) -> list[str]:
    tokenizer = TextTokenizer(pair.tokenizer)
    return ["".join(tokenizer.pieces(text.ids[1:])) for text in stream]


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("{private}/a.txt", OUTSIDE),
        ("{private}/missing.txt", OUTSIDE),
        ("{private}/*.txt", OUTSIDE),
        ("../private/a.txt", OUTSIDE),
        ("../*/a.txt", OUTSIDE),
        ("*/../../private/a.txt", "leaves a folder after a wildcard"),
        ("link.txt", OUTSIDE),
        ("linked/a.txt", OUTSIDE),
        ("linked/*", OUTSIDE),
        ("/proc/self/task/*/environ", NEVER),
        ("/proc/self/environ", NEVER),
        ("/dev/stdin", NEVER),
        ("/sys/kernel/*", NEVER),
        ("environment", NEVER),
        ("/", OUTSIDE),
        ("a\0b", "is no path: .*null"),
        (300 * "long", "[Ff]ile name too long"),
        ("circle/a.txt", "is no path: |no file matches|Symlink loop"),
        ("~nobody-of-this-name/a.txt", "home directory"),
    ],
)
def test_what_lies_outside_is_refused_whether_it_exists_or_not(stream, home: Path, path: str, refusal: str) -> None:
    (home / "link.txt").symlink_to(home.parent / "private" / "a.txt")
    (home / "linked").symlink_to(home.parent / "private")
    (home / "environment").symlink_to("/proc/self/environ")
    (home / "circle").symlink_to(home / "circle")
    with pytest.raises(DataError, match=f"data set 'a': .*{refusal}"):
        stream(replace(TEXT, path=path.format(private=home.parent / "private")))


def test_no_root_opens_the_systems_own_files(stream, tiny_pair: Pair, home: Path) -> None:
    os.environ["PLANTED_TOKEN"] = "secret"
    for path in ("/proc/self/task/*/environ", "/proc/self/environ", "/dev/fd/0"):
        with pytest.raises(DataError, match=NEVER):
            stream(replace(TEXT, path=path), Path("/"))
    private = home.parent / "private" / "a.txt"
    assert read(stream(replace(TEXT, path=str(private)), Path("/")), tiny_pair) == ["private"]


def test_a_named_root_opens_what_lies_below_and_links_to_it(stream, tiny_pair: Pair, home: Path) -> None:
    private = home.parent / "private"
    (home / "link.txt").symlink_to(private / "a.txt")
    for path in (str(private / "*.txt"), "link.txt", "../private/a.txt"):
        assert read(stream(replace(TEXT, path=path), private), tiny_pair) == ["private"]


def test_the_folder_of_a_submission_is_read_if_its_owner_allows_it(stream, tiny_pair: Pair, home: Path) -> None:
    private = home.parent / "private"
    spec = replace(TEXT, path="own.txt")
    (private / "own.txt").write_text("mine\n")
    with pytest.raises(DataError, match=rf"no file matches own.txt in {home}; {private} was passed over, .*--data-"):
        stream(spec, folders=(private,))
    assert read(stream(spec, private, folders=(private,)), tiny_pair) == ["mine"]
    assert read(stream(TEXT, private, folders=(private,)), tiny_pair) == ["home"], "the home comes first"


@pytest.mark.parametrize(
    "path", ["logs/server.log", "queue/*", "q*/a.aof", "link", "pairs/../cache/lock", "search/*", "annotations*"]
)
def test_what_the_processes_keep_for_themselves_is_no_data(home: Path, path: str) -> None:
    """Logs hold tracebacks, the queue all records, annotations what people wrote: examples never show them."""
    for name in ("logs/server.log", "queue/a.aof", "cache/lock", "search/a.arrow", "annotations.sqlite3-wal"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("private\n")
    (home / "pairs").mkdir()
    (home / "link").symlink_to(home / "logs/server.log")
    roots = Workspace(home, home / "jobs/1", lambda: None, data_roots=(home / "logs",)).roots
    own = ", ".join(f".*/{name}" for name in ("queue", "cache", "logs", "search", "annotations.*"))
    with pytest.raises(RootError, match=f"is never read: {own} are crosscope's own"):
        files_below(roots, home, path)
    assert [found.name for found in files_below(roots, home, "a.txt")] == ["a.txt"]


def test_only_regular_files_are_opened(home: Path) -> None:
    roots = Roots([home])
    os.mkfifo(home / "pipe")
    assert [path.name for path in files_below(roots, home, "*")] == ["a.txt"]
    for path, error in ((home / "pipe", RootError), (home, RootError), (home / "none", FileNotFoundError)):
        with pytest.raises(error):
            open_file(roots, path)
    with open_file(roots, home / "a.txt") as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        assert file.read() == b"home\n"


def test_files_are_judged_again_when_they_are_opened(stream, tiny_pair: Pair, home: Path) -> None:
    opened = stream(TEXT)
    (home / "a.txt").unlink()
    (home / "a.txt").symlink_to(home.parent / "private" / "a.txt")
    with pytest.raises(DataError, match=OUTSIDE):
        read(opened, tiny_pair)


def test_a_hub_id_that_is_no_id_reads_no_files(
    stream, tiny_pair: Pair, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` takes the names of its own readers for the current folder, and folders for data sets."""
    private = home.parent / "private"
    monkeypatch.chdir(private)
    hub = DataSpec(name="a", source="hub", path="text", text_column="text")
    for path in ("file:///etc", "a/b/c"):
        with pytest.raises(DataError, match="is neither the id of a data set of the hub"):
            stream(replace(hub, path=path))
    for path in ("text", "json"):
        with pytest.raises(DataError, match=OUTSIDE):
            read(stream(replace(hub, path=path)), tiny_pair)
    (private / "squad").mkdir()
    for path in (str(private), ".", "squad"):
        with pytest.raises(DataError, match=OUTSIDE):
            stream(replace(hub, path=path))


@pytest.mark.parametrize("named", ["{private}/a.txt", "../../private/a.txt"])
def test_a_repository_that_names_files_of_this_machine_is_refused(
    stream, tiny_pair: Pair, home: Path, named: str
) -> None:
    place = named.format(private=home.parent / "private")
    (home / "hub").mkdir()
    (home / "hub" / "README.md").write_text(f"---\nconfigs:\n- config_name: x\n  data_files: {place}\n---\n")
    hub = DataSpec(name="a", source="hub", path=str(home / "hub"), config="x", text_column="text")
    with pytest.raises(DataError, match=OUTSIDE):
        read(stream(hub), tiny_pair)


def test_the_folders_of_a_pair_lie_below_the_roots_too(home: Path) -> None:
    inside, outside = str(home / "base"), str(home.parent / "private")
    for manifest in (
        PairManifest("p", inside, outside, inside),
        PairManifest("p", inside, inside, outside),
        PairManifest("p", outside, "google/gemma", "google/gemma"),
    ):
        with pytest.raises(RootError, match=f"pair 'p': {outside} {OUTSIDE}"):
            check_pair_folders(manifest, Roots([home]))
        check_pair_folders(manifest, Roots([home, Path(outside)]))
    check_pair_folders(PairManifest("p", inside, "google/gemma", "gpt2"), Roots([home]))


def test_parquet_and_json_go_the_same_way(stream, home: Path) -> None:
    (home.parent / "private" / "a.jsonl").write_text(json.dumps({"text": "secret"}))
    for source in ("jsonl", "parquet"):
        spec = DataSpec(name="a", source=source, path=str(home.parent / "private" / "*"), text_column="text")
        with pytest.raises(DataError, match=OUTSIDE):
            stream(spec)
