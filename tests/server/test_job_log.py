"""The end of a job's log, from files as the worker's journal writes them."""

import json
from pathlib import Path

import pytest

from crosscope_server.jobs import log
from crosscope_server.jobs.log import MASK, masked, read_tail

TRACE = """Traceback (most recent call last):
  File "/srv/parts/crosscope_worker/data/chats.py", line 7, in read
    read(row)
ValueError: the secret text of a conversation
"""


def write(home: Path, *entries: object) -> None:
    folder = home / "jobs" / "j1"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (each if isinstance(each, str) else json.dumps({"at": 5.0, "attempt": 1, **each}) for each in entries)  # type: ignore[dict-item]
    (folder / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_lines_are_counted_and_the_last_are_shown(tmp_path: Path) -> None:
    assert read_tail(tmp_path, "j1", 5) == log.Tail([], 0, has_more=False)
    write(
        tmp_path,
        {"event": "start", "device": "cpu"},
        {"event": "stage", "stage": "load", "message": ""},
        {"event": "say", "stage": "train", "message": "step 9 of 10"},
        '{"cut sh',
        {"event": "end", "state": "failed", "message": "no disk"},
    )
    tail = read_tail(tmp_path, "j1", 3)
    assert [(line.event, line.text) for line in tail.lines] == [
        ("stage", "load"),
        ("say", "train: step 9 of 10"),
        ("end", "failed: no disk"),
    ]
    assert (tail.num_before, tail.has_more) == (1, False)


def test_an_error_shows_its_type_and_places_and_not_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, {"event": "error", "error": "ValueError('the secret text of a conversation')", "traceback": TRACE})
    texts = [line.text for line in read_tail(tmp_path, "j1", 9).lines]
    assert texts == ["ValueError", "  data/chats.py:7 in read"]


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_BYTES", 300)
    write(tmp_path, *({"event": "say", "stage": "train", "message": f"step {i}"} for i in range(100)))
    tail = read_tail(tmp_path, "j1", 2)
    assert [line.text for line in tail.lines] == ["train: step 98", "train: step 99"]
    assert tail.has_more
    assert 0 < tail.num_before < 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for hf_abcdefghijklmnop at the hub", f"401 for {MASK} at the hub"),
        ("Authorization: Bearer abcd.efgh-ijkl", f"Authorization: {MASK}"),
        ("HF_TOKEN=abc and api-key: 'xyz', done", f"HF_TOKEN={MASK} and api-key: {MASK}', done"),
        ("proxy http://me:pass@host:1/x", f"proxy http://{MASK}@host:1/x"),
        ("7888 tokens of the next texts: 5", "7888 tokens of the next texts: 5"),
        ("training tokens: 5 of 9", "training tokens: 5 of 9"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
