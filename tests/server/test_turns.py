"""Who is next, worked out by hand."""

from crosscope_server.turns import Turns, may_enter


def served(turns: Turns[str]) -> list[str]:
    found = []
    while (entry := turns.next()) is not None:
        found.append(entry.item)
    return found


def test_callers_take_turns_whoever_asked_for_more():
    turns = Turns[str](100)
    for item in ("a1", "a2", "a3", "a4"):
        turns.add("a", False, 10, item)
    turns.add("b", False, 10, "b1")
    turns.add("b", False, 10, "b2")
    # Marks at which they begin: a 0, 10, 20, 30; b 0, 10. Of equal ones, whoever was there first.
    assert served(turns) == ["a1", "b1", "a2", "b2", "a3", "a4"]


def test_a_turn_is_as_long_as_its_cost():
    turns = Turns[str](100)
    for item in ("a1", "a2"):
        turns.add("a", False, 30, item)
    for item in ("b1", "b2", "b3", "b4"):
        turns.add("b", False, 10, item)
    # a begins at 0 and 30; b at 0, 10, 20 and 30, where a was put in line first.
    assert served(turns) == ["a1", "b1", "b2", "b3", "a2", "b4"]


def test_who_comes_after_a_pause_is_next_and_has_saved_nothing_up():
    turns = Turns[str](100)
    for number in range(6):
        turns.add("greedy", False, 10, f"g{number}")
    assert [turns.next().item for _ in range(3)] == ["g0", "g1", "g2"]  # the last began at 20
    for number in range(3):
        turns.add("late", False, 10, f"l{number}")  # at 20, 30 and 40, where greedy stands at 30, 40 and 50
    assert served(turns) == ["l0", "g3", "l1", "g4", "l2", "g5"]


def test_bulk_moves_on_four_times_as_fast():
    turns = Turns[str](100)
    for number in range(3):
        turns.add("a", True, 10, f"bulk{number}")  # at 0, 40, 80
    for number in range(9):
        turns.add("a", False, 10, f"asked{number}")  # at 0, 10, … 80
    assert served(turns) == [
        *("bulk0", "asked0", "asked1", "asked2", "asked3", "bulk1", "asked4", "asked5", "asked6", "asked7"),
        *("bulk2", "asked8"),
    ]


def test_who_leaves_takes_no_turn_and_costs_nothing():
    turns = Turns[str](100)
    a1, a2, b1 = turns.add("a", False, 10, "a1"), turns.add("a", False, 10, "a2"), turns.add("b", False, 10, "b1")
    turns.drop(a1)
    turns.drop(a1)
    assert (turns.num, turns.cost) == (2, 20)
    assert turns.first() is a2
    turns.drop(b1)
    assert served(turns) == ["a2"]
    turns.drop(a2)  # it was served
    assert (turns.num, turns.cost) == (0, 0)
    turns.add("b", False, 10, "b2")
    assert served(turns) == ["b2"]


def test_places_are_left_for_whoever_comes_next():
    """One may hold four times what is free: of 10 places one caller gets 8, then another 4 / 5 of the rest."""
    turns = Turns[str](10)
    taken = 0
    while turns.has_room("a"):
        turns.add("a", False, 1, "x")
        taken += 1
    assert taken == 8  # 7 < 4 · (10 - 7), and 8 = 4 · (10 - 8)
    assert turns.has_room("b")
    turns.add("b", False, 1, "x")
    assert turns.has_room("c")
    turns.add("c", False, 1, "x")
    assert not any(turns.has_room(name) for name in "abcd")
    assert may_enter(own=3, total=9, most=10)
    assert not may_enter(own=4, total=9, most=10)


def test_what_is_served_before():
    turns = Turns[str](100)
    for _ in range(50):
        turns.add("a", False, 10, "a")
    assert turns.cost_before("b", is_bulk=False) == 0  # b would be next
    assert turns.cost_before("a", is_bulk=False) == 500
    turns.add("b", False, 10, "b")
    assert turns.cost_before("b", is_bulk=False) == 20  # its own, and as much of a's
    turns.add("b", True, 10, "b")
    assert turns.cost_before("b", is_bulk=True) == 120  # 4 · 10 of each of three lanes
    assert turns.cost_before("c", is_bulk=True) == 0


def test_callers_who_are_gone_are_forgotten():
    turns = Turns[str](10_000)
    for number in range(1000):
        turns.add(f"caller {number}", False, 1, "x")
        turns.next()
        turns.rest()
    assert len(turns._lanes) < 200
