"""Long phases report what is done, and stop when they are told to."""

import threading

import pytest
from fixtures_waiting import PATIENCE_S

from crosscope_proto.specs import TrainingSpec
from crosscope_worker.phases import Phase, TrainingProgress, loading
from crosscope_worker.work import Cancelled


def test_a_phase_says_how_much_is_done_and_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 0.0, 2.0, 8.0))
    monkeypatch.setattr("crosscope_worker.phases.time.monotonic", lambda: next(clock))
    told: list[tuple[str, float, str]] = []

    def note(stage: str, fraction: float, message: str = "", **_: object) -> None:
        told.append((stage, fraction, message))

    phase = Phase(note, "hash", "hashing", 4_000_000, "bytes")
    phase(1000000)
    phase(3000000)
    assert told == [
        ("hash", 0.0, "hashing: 0 of 4.00 million bytes"),
        ("hash", 0.25, "hashing: 1.00 million of 4.00 million bytes, about 6 s left"),
        ("hash", 1.0, "hashing: 4.00 million of 4.00 million bytes"),
    ]


def test_loading_moves_and_ends_with_what_it_is_about() -> None:
    told: list[tuple[str, float, str]] = []
    heard = threading.Event()

    def progress(stage: str, fraction: float, message: str = "", **_: object) -> None:
        told.append((stage, fraction, message))
        if len(told) > 1:
            heard.set()
            raise Cancelled

    with loading(progress, "loading the pair p", 10_000_000):
        assert heard.wait(PATIENCE_S)
    assert told[0] == ("load", 0.0, "loading the pair p")
    assert told[1][2].startswith("loading the pair p: ")
    assert "of about 10 MB after 1 s" in told[1][2]
    assert "loading" not in {thread.name for thread in threading.enumerate()}


def test_a_small_buffer_is_filled_from_a_whole_window() -> None:
    """The models read a window at a time: the stage moves until they have, and is not full at the first forward."""
    told: list[tuple[str, float, str]] = []

    def note(stage: str, fraction: float, message: str = "", **_: object) -> None:
        told.append((stage, fraction, message))

    following = TrainingProgress(note, TrainingSpec(buffer_tokens=4096, batch_size=512), window=65536)
    following.begin()
    for _ in range(8):
        following.tick(8192)
    assert [share for _, share, _ in told[1:]] == [step / 8 for step in range(9)]
    assert all("of 65536 tokens" in message for _, _, message in told[1:])
    two_windows = TrainingProgress(note, TrainingSpec(buffer_tokens=65537), window=65536)
    two_windows.tick(65536)
    assert told[-1][1] == 0.5
