"""What rows of generated tokens get added, by hand, and against Steering.change asked token by token."""

import numpy as np
import torch

from crosscope_proto.roles import CHAT, TokenRole
from crosscope_worker.effects.additions import Additions
from crosscope_worker.effects.interventions import Action, Intervention, Reach, Site, Steering
from tests.worker.effects.test_interventions import MAXIMA, crosscoder

UNIT = [0.0, 8.0]
"""Latent 0 at its maximum in chat."""
ROLE, OTHER_ROLE = TokenRole.ASSISTANT, TokenRole.TEXT


def steering(*interventions: Intervention) -> Steering:
    return Steering(crosscoder(), MAXIMA, CHAT, interventions)


def add(amount: float, **given: object) -> Intervention:
    return Intervention((0,), Action.ADD, amount, **given)  # pyright: ignore[reportArgumentType]


def additions(*steered: tuple[Steering, list[int]], num_rows: int) -> Additions:
    return Additions([(each, torch.tensor(places)) for each, places in steered], num_rows)


def step(*positions: int, role: TokenRole = ROLE, left_out: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    number = len(positions)
    return np.array(positions), np.full(number, role, np.uint8), np.full(number, left_out)


def times(*amounts: float) -> list[list[float]]:
    return [[amount * each for each in UNIT] for amount in amounts]


def test_rows_get_what_their_arm_adds_and_an_outlying_norm_spares_them():
    firm = steering(add(1.0), add(0.5, include_left_out=True))
    found = additions((steering(add(2.0)), [0, 3]), (firm, [2]), num_rows=4).at(*step(7, 8, 9, 10))
    outlying = torch.tensor([True, True, True, False])
    assert found.delta(None).tolist() == times(2, 0, 1.5, 2)
    assert found.counted(None).tolist() == [[1, 0], [0, 0], [1, 0], [1, 0]]
    assert found.delta(outlying).tolist() == times(0, 0, 0.5, 2)
    assert found.counted(outlying).tolist() == [[0, 1], [0, 0], [1, 0], [1, 0]]


def test_what_was_found_is_used_until_a_role_a_policy_or_a_named_position_differs():
    steered = steering(add(1.0, roles=frozenset({int(ROLE)})), add(3.0, positions=frozenset({9, 10})))
    lane = additions((steered, [0]), num_rows=1)
    seven = lane.at(*step(7))
    assert lane.at(*step(8)) is seven
    found = [lane.at(*given).delta(None).tolist() for given in (step(9), step(10), step(11))]
    assert found == [times(4), times(4), times(1)]
    assert lane.at(*step(11, role=OTHER_ROLE)).delta(None).tolist() == times(0)
    spared = lane.at(*step(12, left_out=True))
    assert spared.delta(None).tolist() == times(0)
    assert spared.counted(None).tolist() == [[0, 1]]
    assert lane.at(*step(13)).delta(None).tolist() == times(1)


def test_every_case_is_what_a_steering_says_of_that_token():
    wheres = [{"reach": Reach.PROMPT}, {"positions": frozenset({5})}, {"roles": frozenset({int(ROLE)})}, {}]
    arms = [steering(add(1.0, **where), add(-0.5, include_left_out=firm)) for where in wheres for firm in (True, False)]
    lane = additions(*((arm, [row]) for row, arm in enumerate(arms)), num_rows=len(arms))
    seen = set[str]()
    for position in (4, 5, 6):
        for role in (ROLE, OTHER_ROLE):
            for left_out in (False, True):
                positions, roles, by_policy = step(*[position] * len(arms), role=role, left_out=left_out)
                found = lane.at(positions, roles, by_policy)
                for is_outlying in (False, True):
                    judged = torch.full((len(arms),), is_outlying)
                    for row, arm in enumerate(arms):
                        at = [torch.from_numpy(each[:1]) for each in (positions, roles, by_policy)]
                        change = arm.change(None, Site(at[0], at[1], torch.tensor([True]), at[2] | is_outlying))
                        assert found.delta(judged)[row].tolist() == change.delta[0].tolist()
                        assert found.counted(judged)[row].tolist() == [int(change.changed), int(change.spared)]
                        seen.add(f"{row} {change.delta.tolist()} {change.spared.tolist()}")
    assert len(seen) > len(arms)
