"""What a data set loses is counted by reason, and a set that loses too much ends the job instead of vanishing."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from crosscope_proto.left_out import left_out
from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.data import tally
from crosscope_worker.data.tally import MAX_REASONS, OTHER, Counts, reason_of
from crosscope_worker.data.texts import DataError, TextStream
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer

POLICY = TokenPolicy(held_out_every=5)
CHAT = DataSpec(name="chat", source="jsonl", path="chat.jsonl", chat_column="turns", skip_refused=True)
GOOD = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
EMPTY = [{"role": "user", "content": " "}]
HUMAN = [{"role": "human", "content": "hello"}, {"role": "gpt", "content": "hi"}]
Open = Callable[..., TextStream]


@pytest.fixture
def opened(tiny_pair: Pair, tmp_path: Path) -> Open:
    """A stream over conversations, and documents beside them."""
    (tmp_path / "web.txt").write_text(300 * "fox\n")

    def write(*conversations: Any, spec: DataSpec = CHAT, policy: TokenPolicy = POLICY, **more: Any) -> TextStream:
        rows = (json.dumps({"turns": turns} | more) for turns in conversations)
        (tmp_path / "chat.jsonl").write_text("".join(f"{row}\n" for row in rows))
        return again(spec, policy)

    def again(spec: DataSpec = CHAT, policy: TokenPolicy = POLICY, split: Any = "train") -> TextStream:
        web = DataSpec(name="web", source="text", path="web.txt")
        return TextStream([web, spec], TextTokenizer(tiny_pair.tokenizer), policy, [tmp_path], split)

    write.again = again
    return write


@pytest.mark.parametrize("turns", [HUMAN, EMPTY, [{"from": "human", "value": "x"}], None])
def test_a_set_that_is_refused_whole_ends_the_job(opened: Open, turns: Any) -> None:
    with pytest.raises(DataError, match=r"data set 'chat': 8 of 8 texts were refused.*: 8 × .*\(the first: .*line 1"):
        list(opened(*10 * [turns]))


def test_a_chat_model_without_template_ends_the_job(opened: Open, tiny_pair: Pair, monkeypatch) -> None:
    monkeypatch.setattr(tiny_pair.tokenizer, "chat_template", None)
    with pytest.raises(DataError, match=r"8 of 8 texts were refused.*8 × the pair's tokenizer has no chat template"):
        list(opened(*10 * [GOOD]))


def test_a_set_that_gives_no_text_ends_the_job_whatever_share_is_allowed(opened: Open) -> None:
    with pytest.raises(DataError, match="'chat': 8 of 8 texts were refused, so none is left"):
        list(opened(*10 * [HUMAN], spec=replace(CHAT, max_refused_share=1.0)))


def test_too_large_a_share_ends_the_job_early(opened: Open) -> None:
    """At 100 refused texts, not after the last of 2 000."""
    stream = opened(*500 * [GOOD, *3 * [HUMAN]], spec=replace(CHAT, max_refused_share=0.4))
    given: list[Any] = []
    with pytest.raises(DataError, match=r"100 of 133 texts were refused, more than max_refused_share 0.4 allows"):
        given.extend(stream)
    assert stream.counts[1].read == 133
    assert len(list(opened(*200 * [GOOD, HUMAN]))) == 240 + 160, "half is allowed where nothing else is said"


def test_reasons_are_counted_and_most_frequent_first(opened: Open) -> None:
    stream = opened(*3 * [EMPTY, HUMAN, *4 * [GOOD], HUMAN])
    list(stream)
    assert stream.counts[0].refused == {}
    reasons = stream.counts[1].refused
    assert sorted(reasons.values()) == [2, 6]
    assert next(reason for reason, count in reasons.items() if count == 2).startswith("a turn (user) is empty")
    assert "turn N" not in "".join(reasons)


def test_a_share_is_judged_where_a_reading_gives_up_before_the_end(opened: Open) -> None:
    stream = opened(*40 * [GOOD, *4 * [HUMAN]])
    list(islice(stream, 40))
    with pytest.raises(DataError, match=r"of .* texts were refused"):
        stream.check_losses()


@pytest.mark.parametrize("read_before", [1, 9, 25])
def test_counts_go_on_after_a_resume(opened: Open, read_before: int) -> None:
    mixed = 10 * [GOOD, EMPTY, GOOD]
    whole, first = opened(*mixed), opened(*mixed)
    list(whole)
    list(islice(first, read_before))
    second = opened.again()
    second.restore(json.loads(json.dumps(first.state())))
    list(second)
    assert second.counts == whole.counts
    assert whole.counts[1].num_refused == 8
    assert whole.counts[1].read == 24


def test_a_state_of_an_older_version_is_refused_by_name(opened: Open) -> None:
    stream = opened(GOOD)
    old = {"next_row": [0, 0], "num_tokens": [0, 0], "ended": [False, False], "turn": 0, "num_skipped": 3}
    with pytest.raises(DataError, match="of an older version"):
        stream.restore(old)


def test_held_out_texts_are_judged_by_themselves(opened: Open) -> None:
    opened(*6 * [GOOD, GOOD, GOOD, GOOD, HUMAN])
    assert len(list(opened.again())) == 240 + 24
    with pytest.raises(DataError, match="'chat': 6 of 6 texts were refused"):
        list(opened.again(split="held_out"))


def test_what_is_cut_is_counted(opened: Open) -> None:
    tags = [{"turn": 1, "start": 0, "end": 2, "behaviour": "greeting"}]
    spec = replace(CHAT, behaviours_column="tags")
    whole = next(text for text in opened(*3 * [GOOD], spec=spec, tags=tags) if text.dataset == 1)
    (behaviour,) = whole.behaviours
    policy = replace(POLICY, max_length=behaviour.end - 1)
    stream = opened(*3 * [GOOD], spec=spec, policy=policy, tags=tags)
    assert [text.behaviours for text in stream if text.dataset == 1] == 3 * [()]
    counts = stream.counts[1]
    assert (counts.cut, counts.cut_tokens) == (3, 3 * (len(whole.ids) - behaviour.end + 1))
    assert counts.lost_behaviours == 3
    assert stream.counts[0].cut == 0


def test_a_set_without_a_kept_token_ends_the_job(opened: Open) -> None:
    policy = replace(POLICY, skip_first=6)
    with pytest.raises(
        DataError, match=r"'web': the token policy keeps no token of its 100 texts; lower skip_first \(6"
    ):
        list(opened(GOOD, policy=policy))


def test_max_tokens_is_said(opened: Open) -> None:
    stream = opened(*100 * [GOOD], spec=replace(CHAT, max_tokens=50))
    whole = list(stream)
    assert [counts.stopped for counts in stream.counts] == [0, 1]
    cut, resumed = opened.again(replace(CHAT, max_tokens=50)), opened.again(replace(CHAT, max_tokens=50))
    chats = [i for i, text in enumerate(whole, 1) if text.dataset == 1]
    list(islice(cut, chats[-1]))
    resumed.restore(cut.state())
    assert not [text for text in resumed if text.dataset == 1], "a set that has given its tokens gives no more"
    assert resumed.counts == stream.counts


def test_reasons_group_and_are_bounded() -> None:
    assert reason_of("turn 3: a tool turn cannot stand here; there is one already, turn 0") == reason_of(
        "turn 17: a tool turn cannot stand here; there is one already, turn 4"
    )
    assert reason_of("the role is 'human'") == "the role is 'human'"
    assert reason_of(f"the turn is {'x y' * 20!r}") == "the turn is '…'"
    assert len(reason_of("long " * 100)) == 160
    counts = Counts()
    for letter in range(100):
        counts.refuse(f"reason {chr(letter + 300)}")
    assert len(counts.refused) == MAX_REASONS + 1
    assert counts.refused[OTHER] == 100 - MAX_REASONS


def test_counts_are_added_and_taken_from_each_other() -> None:
    first, second = [Counts(read=5, refused={"a": 2, "b": 1}, cut=1)], [Counts(read=3, refused={"b": 2}, retries=1)]
    both = tally.total(first, second)
    assert both == [Counts(read=8, refused={"a": 2, "b": 3}, cut=1, retries=1)]
    difference = tally.shifted(tally.as_state(both), tally.as_state(first), -1)
    assert tally.from_state(difference) == second
    assert tally.total(first, ()) == first


def test_what_was_lost_is_said() -> None:
    said = left_out(
        {"lmsys": {"a turn is empty": 300, "a": 4, "b": 4, "c": 3, "d": 1}},
        {"lmsys": {"read": 10_000, "cut_tokens": 0, "lost_behaviours": 2}, "web": {"read": 7, "retries": 1}},
    )
    assert re.sub("\u202f", " ", said[0]) == (
        "312 of 10 000 texts of lmsys were left out: 300 × a turn is empty; 4 × a; 4 × b; 4 × other reasons"
    )
    assert said[1:] == [
        "2 tagged behaviours of lmsys lie beyond max_length or have no token",
        "1 reads of web failed and were made again",
    ]
    assert left_out({}, {"web": {"read": 7, "cut": 0}}) == left_out({}, {}) == []
