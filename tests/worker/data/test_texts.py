import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.data import tally
from crosscope_worker.data.part import WHOLE, Part
from crosscope_worker.data.texts import DataError, Split, Text, TextStream
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer

Read = Callable[..., TextStream]
POLICY = TokenPolicy(held_out_every=5)


@pytest.fixture(scope="module")
def tokenizer(tiny_pair: Pair) -> TextTokenizer:
    return TextTokenizer(tiny_pair.tokenizer)


@pytest.fixture
def read(tokenizer: TextTokenizer, tmp_path: Path):
    def stream(*data: DataSpec, split: Split = "train", policy: TokenPolicy = POLICY, part: Part = WHOLE) -> TextStream:
        return TextStream(data, tokenizer, policy, [tmp_path / "pair", tmp_path], split, part=part)

    return stream


def said(tokenizer: TextTokenizer, texts: list[Text]) -> list[str]:
    return ["".join(tokenizer.pieces(text.ids[1:])) for text in texts]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path: Path, prefix: str, count: int) -> DataSpec:
    (path / f"{prefix}.txt").write_text("".join(f"{prefix} {index}\n" for index in range(count)))
    return DataSpec(name=prefix, source="text", path=f"{prefix}.txt")


def test_every_nth_text_of_a_set_is_held_out(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    spec = lines(tmp_path, "a", 11)
    assert said(tokenizer, list(read(spec))) == [f"a {i}" for i in range(11) if i not in (4, 9)]
    assert said(tokenizer, list(read(spec, split="held_out"))) == ["a 4", "a 9"]


def test_sets_take_turns_and_drop_out(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    stream = read(lines(tmp_path, "a", 2), lines(tmp_path, "b", 4), lines(tmp_path, "c", 1))
    texts = list(stream)
    assert said(tokenizer, texts) == ["a 0", "b 0", "c 0", "a 1", "b 1", "b 2", "b 3"]
    assert [text.dataset for text in texts] == [0, 1, 2, 0, 1, 1, 1]
    assert said(tokenizer, list(stream)) == said(tokenizer, texts), "a second pass starts over"


@pytest.mark.parametrize("read_before", range(8))
def test_a_restored_stream_goes_on(read: Read, tokenizer: TextTokenizer, tmp_path: Path, read_before: int) -> None:
    data = lines(tmp_path, "a", 3), lines(tmp_path, "b", 6)
    every = said(tokenizer, list(read(*data)))
    first = read(*data)
    begun = list(islice(first, read_before))
    second = read(*data)
    second.restore(json.loads(json.dumps(first.state())))
    assert said(tokenizer, begun) == every[:read_before]
    assert said(tokenizer, list(second)) == every[read_before:]


def test_max_tokens_ends_training_but_not_the_held_out_texts(
    read: Read, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    spec = lines(tmp_path, "a", 20)
    length = len(next(iter(read(spec))).ids)
    limited = replace(spec, max_tokens=2 * length + 1)
    assert said(tokenizer, list(read(limited))) == ["a 0", "a 1", "a 2"]
    assert len(list(read(limited, split="held_out"))) == 4


def test_texts_are_cut(read: Read, tmp_path: Path) -> None:
    spec = lines(tmp_path, "a", 1)
    (text,) = read(spec, policy=TokenPolicy(max_length=2))
    assert text.roles.tolist() == [TokenRole.BOS, TokenRole.TEXT]
    assert len(text.ids) == 2


def test_conversations_and_their_behaviours(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    answer = "sorry, i can not help with that. have a nice day!"
    start = answer.index("have")
    tags = [
        {"turn": 1, "start": 0, "end": 5, "behaviour": "apology"},
        {"turn": 1, "start": start, "end": len(answer), "behaviour": "wish"},
    ]
    rows = [{"chat": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": answer}], "tags": tags}]
    write_jsonl(tmp_path / "chats.jsonl", rows)
    spec = DataSpec(
        name="chats",
        source="jsonl",
        path="*.jsonl",
        chat_column="chat",
        role_key="from",
        content_key="value",
        behaviours_column="tags",
    )
    (text,) = read(spec)
    apology, wish = text.behaviours
    pieces = tokenizer.pieces(text.ids)
    assert (apology.name, "".join(pieces[apology.start : apology.end])) == ("apology", "sorry")
    assert "".join(pieces[wish.start : wish.end]) == " have a nice day!"
    assert apology.decision == wish.decision == apology.start - 1
    assert text.roles[apology.decision] == TokenRole.HEADER
    assert pieces[apology.decision] == "\n"
    (cut,) = read(spec, policy=TokenPolicy(max_length=wish.end - 1))
    assert cut.behaviours == (apology,)


def test_parquet_files_in_order_of_name(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "pair" / "data"
    folder.mkdir(parents=True)
    for name in ("b", "a"):
        pq.write_table(pa.table({"body": [f"{name} 0", f"{name} 1"], "other": [1, 2]}), folder / f"{name}.parquet")
    spec = DataSpec(name="docs", source="parquet", path="data/*.parquet", text_column="body")
    assert said(tokenizer, list(read(spec))) == ["a 0", "a 1", "b 0", "b 1"]
    chats = [[{"role": "user", "content": "hi"}]]
    pq.write_table(pa.table({"turns": chats}), tmp_path / "chats.parquet")
    (text,) = read(DataSpec(name="chats", source="parquet", path="chats.parquet", chat_column="turns"))
    assert TokenRole.USER in text.roles


def test_the_pairs_folder_comes_first_and_absolute_paths_stay(
    read: Read, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "pair").mkdir()
    outer = lines(tmp_path, "a", 1)
    (tmp_path / "pair" / "a.txt").write_text("inner\n")
    assert said(tokenizer, list(read(outer))) == ["inner"]
    assert said(tokenizer, list(read(replace(outer, path=str(tmp_path / "a.txt"))))) == ["a 0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "broken.jsonl, line 2: not JSON"),
        ("[1]", "line 2: not a JSON object but list"),
        (100_000 * "[", "line 2: not JSON"),
        ('{"txt": "a"}', "line 2: there is no column 'text'; there are txt"),
        ('{"text": 3}', "line 2: column 'text' holds int"),
        ('{"text": ""}', "line 2: the text is empty"),
        ('{"text": "\\ud800"}', "line 2: the text holds a lone surrogate"),
    ],
)
def test_broken_documents_are_named(read: Read, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(read(DataSpec(name="broken", source="jsonl", path="broken.jsonl", text_column="text")))


@pytest.mark.parametrize(
    ("chat", "tags", "message"),
    [
        ("hi", [], "line 1: column 'chat' holds str, not a list of turns"),
        ([{"role": "user"}], [], "line 1, turn 0: 'content' must be a text"),
        (
            [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}],
            [],
            "line 1: turn 1: the role is 'critic'",
        ),
        ([], [], "line 1: the conversation is empty"),
        ([{"role": "user", "content": "a"}], [{"turn": 0}], "line 1: a tagged behaviour needs turn"),
        ([{"role": "user", "content": "a"}], 5, "line 1: column 'tags' holds int, not a list"),
        (
            [{"role": "user", "content": "a"}],
            [{"turn": 0, "start": 0, "end": 2, "behaviour": "wish"}],
            "line 1: behaviour 'wish' lies outside",
        ),
    ],
)
def test_broken_conversations_are_named(read: Read, tmp_path: Path, chat: Any, tags: Any, message: str) -> None:
    write_jsonl(tmp_path / "chats.jsonl", [{"chat": chat, "tags": tags}])
    spec = DataSpec(name="chats", source="jsonl", path="chats.jsonl", chat_column="chat", behaviours_column="tags")
    with pytest.raises(DataError, match=message):
        list(read(spec))


def test_missing_empty_and_unreadable_files(read: Read, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'gone': no file matches gone\*\.txt in .*pair or "):
        read(DataSpec(name="gone", source="text", path="gone*.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"'empty' is empty: empty\.txt"):
        list(read(DataSpec(name="empty", source="text", path="empty.txt")))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"bytes\.txt cannot be read as UTF-8"):
        list(read(DataSpec(name="bytes", source="text", path="bytes.txt")))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read as Parquet"):
        list(read(DataSpec(name="cut", source="parquet", path="cut.parquet", text_column="text")))
    pq.write_table(pa.table({"body": ["a"], "url": ["b"]}), tmp_path / "docs.parquet")
    with pytest.raises(DataError, match="no column 'text'; there are body, url"):
        list(read(DataSpec(name="docs", source="parquet", path="docs.parquet", text_column="text")))


def test_a_hub_data_set_in_a_local_folder_streams(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "hub" / "train.jsonl", [{"text": f"a {i}"} for i in range(3)])
    spec = DataSpec(name="docs", source="hub", path=str(tmp_path / "hub"), text_column="text")
    assert said(tokenizer, list(read(spec))) == ["a 0", "a 1", "a 2"]
    with pytest.raises(DataError, match=r"'docs': .* cannot be read from the hub"):
        list(read(replace(spec, split="gone")))


def test_a_set_without_a_held_out_text_is_refused(read: Read, tmp_path: Path) -> None:
    enough, few = lines(tmp_path, "enough", 5), lines(tmp_path, "few", 4)
    read(enough).check_held_out()
    with pytest.raises(DataError, match=r"'few' has 4 texts, .* lower tokens.held_out_every \(5\) or add texts"):
        read(enough, few).check_held_out()


def test_a_text_knows_its_place(read: Read, tmp_path: Path) -> None:
    texts = list(read(lines(tmp_path, "a", 6)))
    assert [text.place for text in texts] == [f"{tmp_path / 'a.txt'}, line {i}" for i in (1, 2, 3, 4, 6)]


def test_fraction_is_that_of_the_slowest_set(read: Read, tmp_path: Path) -> None:
    short, long = lines(tmp_path, "a", 10), lines(tmp_path, "b", 20)
    stream = read(short, long)
    shares = [stream.fraction() for _ in stream]
    assert shares[0] == 0.0
    assert shares[7] == pytest.approx(4 / 20)  # four texts of each; the fifth of each set is held out
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(19 / 20)


def test_refused_texts_end_the_stream_or_are_counted(read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    good = [{"role": "user", "content": "hello"}]
    write_jsonl(tmp_path / "c.jsonl", [{"turns": turns} for turns in (good, [*good, *good], good, good)])
    spec = DataSpec(name="c", source="jsonl", path="c.jsonl", chat_column="turns")
    with pytest.raises(DataError, match=r"c\.jsonl, line 2"):
        list(read(spec))
    stream = read(replace(spec, skip_refused=True))
    assert len(list(stream)) == 3
    assert stream.counts[0].num_refused == 1
    resumed = read(replace(spec, skip_refused=True))
    next(iter(first := read(replace(spec, skip_refused=True))))
    resumed.restore(json.loads(json.dumps(first.state())))
    assert len(list(resumed)) == 2
    assert resumed.counts[0].num_refused == 1


def test_configuration_and_split_of_a_hub_data_set(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """A folder in the hub's layout: configurations en and de, each with its own splits."""
    hub = tmp_path / "hub"
    lines = ["---", "configs:"]
    for config in ("en", "de"):
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in ("train", "test"):
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
            write_jsonl(hub / config / f"{split}.jsonl", [{"text": f"{config} {split}"}])
    (hub / "README.md").write_text("\n".join([*lines, "---", ""]))
    spec = DataSpec(name="docs", source="hub", path=str(hub), text_column="text", config="en")
    assert said(tokenizer, list(read(spec))) == ["en train"]
    assert said(tokenizer, list(read(replace(spec, config="de")))) == ["de train"]
    assert said(tokenizer, list(read(replace(spec, split="test")))) == ["en test"]
    with pytest.raises(DataError, match=r"'docs': .* cannot be read from the hub"):
        list(read(replace(spec, config="fr")))


def test_parts_give_every_text_once_and_counts_add_up(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [{"text": f"a {i}"} if i % 7 else {"text": ""} for i in range(43)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.table({"text": [f"p {i}" for i in range(31)]}), tmp_path / "p.parquet")
    data = (
        DataSpec(name="a", source="jsonl", path="a.jsonl", text_column="text", skip_refused=True),
        DataSpec(name="p", source="parquet", path="p.parquet", text_column="text", max_tokens=60),
        lines(tmp_path, "t", 9),
    )
    for split in ("train", "held_out"):
        whole = read(*data, split=split)
        texts, counts = said(tokenizer, list(whole)), tally.as_state(whole.counts)
        for number in (1, 2, 3, 50):
            streams = [read(*data, split=split, part=Part(index, number)) for index in range(number)]
            found = [said(tokenizer, list(stream)) for stream in streams]
            assert sum(map(len, found)) == len({text for each in found for text in each})
            together = tally.as_state(tally.together(*(tally.as_state(stream.counts) for stream in streams)))
            for name in ("a", "t"):
                own = [
                    sorted(text for text in each if text.startswith(name))
                    for each in (chain.from_iterable(found), texts)
                ]
                assert own[0] == own[1], (split, number, name)
            assert [together[0], together[2]] == [counts[0], counts[2]]
            assert together[1]["stopped"] == counts[1]["stopped"]
            if number == 3:
                assert [len(each) for each in found] != [0, 0, 0]
                assert max(map(len, found)) - min(map(len, found)) <= 4


def test_a_part_goes_on_where_it_stood(read: Read, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    spec, part = lines(tmp_path, "a", 40), Part(1, 3)
    stream = read(spec, part=part)
    first = said(tokenizer, list(islice(stream, 4)))
    resumed = read(spec, part=part)
    resumed.restore(json.loads(json.dumps(stream.state())))
    rest = said(tokenizer, list(resumed))
    assert first + rest == said(tokenizer, list(read(spec, part=part)))
    assert first[:3] == ["a 1", "a 5", "a 8"], "every third of the texts that are not held out"


def test_a_row_of_another_part_is_not_parsed(read: Read, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{broken\n{"text": "two"}\n')
    spec = DataSpec(name="b", source="jsonl", path="b.jsonl", text_column="text")
    assert len(list(read(spec, part=Part(0, 2)))) == 2
    with pytest.raises(DataError, match=r"b\.jsonl, line 2: not JSON"):
        list(read(spec, part=Part(1, 2)))


def test_what_all_parts_lost_is_judged_together(read: Read, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [{"text": "" if i % 2 or i < 20 else f"c {i}"} for i in range(60)])
    spec = DataSpec(name="c", source="jsonl", path="c.jsonl", text_column="text", skip_refused=True)
    streams = [read(spec, part=Part(index, 2), policy=TokenPolicy(held_out_every=1000)) for index in range(2)]
    found = [len(list(stream)) for stream in streams]
    assert found == [20, 0], "one part alone would have none left"
    with pytest.raises(DataError, match=r"40 of 60 texts were refused, more than max_refused_share 0\.5"):
        read(spec).check_together(tally.together(*(tally.as_state(each.counts) for each in streams)), ended=True)
