"""The share of a whole job that is done, and its remaining time, computed by hand."""

import pytest

from crosscope_proto.stages import STAGES
from crosscope_worker.jobs.kinds import KINDS
from crosscope_worker.jobs.stages import Shares, weights


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_jobs_share_never_falls_and_its_end_is_estimated_from_the_stages_speed() -> None:
    clock = Clock()
    shares = Shares((("load", 10.0), ("train", 80.0), ("analyse", 10.0)), clock=clock)
    shares.at("load", 0.5)
    assert (shares.total, shares.eta_s) == (pytest.approx(0.05), 0)  # loading tells nothing of training
    clock.now += 50
    shares.at("load", 1.0)
    assert shares.eta_s == 0
    shares.at("train", 0.2)  # resumed: a fifth was done before
    clock.now += 20
    shares.at("train", 0.4)
    # A fifth of the stage took 20 s: 60 s for its rest, and 100 s / 8 for the analysis.
    assert (shares.total, shares.eta_s) == (pytest.approx(0.1 + 0.8 * 0.4), pytest.approx(60 + 12.5))
    shares.at("notice", 0.0)
    shares.at("load", 0.0)
    assert shares.total == pytest.approx(0.42)
    shares.at("analyse", 1.0)
    assert shares.total == pytest.approx(1.0)


def test_expected_seconds_take_the_place_of_the_table_if_all_are_known() -> None:
    table = (("load", 1.0), ("train", 3.0))
    assert weights(table, {"load": 2.0, "train": 38.0, "other": 5.0}) == [("load", 2.0), ("train", 38.0)]
    assert weights(table, {"train": 38.0}) == weights(table, {}) == [("load", 1.0), ("train", 3.0)]
    shares = Shares(weights(table, {"load": 2.0, "train": 38.0}))
    shares.at("train", 0.5)
    assert shares.total == pytest.approx((2 + 19) / 40)


def test_a_later_attempt_goes_on_from_what_was_reported() -> None:
    shares = Shares((("load", 1.0), ("train", 3.0)), done=0.6)
    shares.at("load", 0.5)
    assert shares.total == 0.6
    shares.at("train", 1.0)
    assert shares.total == 1.0


def test_every_kind_has_stages() -> None:
    assert STAGES.keys() == KINDS.keys()
