"""How much a worker is given, worked out by hand."""

from crosscope_server.window import ANSWER_S, EXPRESS_CALLS, MAX_COST, MIN_CALLS, SHARED_CALLS, Rate, Window


def test_a_worker_has_room_for_its_limit_and_some_more_for_who_has_nothing_under_way():
    window = Window()
    for _ in range(MIN_CALLS):
        assert window.has_room()
        window.begin(64, 0)
    assert not window.has_room()
    for _ in range(EXPRESS_CALLS):
        assert window.has_room(express=True)
        window.begin(64, 0)
    assert not window.has_room(express=True)


def test_a_slow_worker_is_given_less_beside_somebody_who_asks_single_calls():
    window = Window()
    for _ in range(SHARED_CALLS):
        assert window.has_room(shared=True)
        window.begin(64, 0)
    assert not window.has_room(shared=True)
    assert window.has_room(express=True, shared=True)
    assert window.has_room()
    quick = Window(limit=2 * MIN_CALLS, num=SHARED_CALLS)
    assert quick.has_room(shared=True)  # a batch more or less costs it no time
    assert Window(limit=MIN_CALLS, is_fixed=True, num=SHARED_CALLS).has_room(shared=True)


def test_a_call_beyond_all_cost_goes_alone():
    window = Window()
    assert window.has_room()
    window.begin(2 * MAX_COST, 0)
    assert not window.has_room(express=True)
    window.end(2 * MAX_COST)
    assert window.has_room()


def test_the_limit_follows_how_fast_a_full_worker_answers():
    window = Window()

    def answer(seconds: float, times: int) -> float:
        for _ in range(times):
            while window.has_room():
                window.begin(1, 0)
            window.end(1, seconds)
        return window.limit

    assert answer(ANSWER_S / 2, 8) == MIN_CALLS + 2  # a quarter each
    assert answer(1.5 * ANSWER_S, 8) == MIN_CALLS + 2  # neither quick nor slow
    assert answer(3 * ANSWER_S, 4) == MIN_CALLS + 1
    assert answer(3 * ANSWER_S, 100) == MIN_CALLS
    idle = Window()
    for _ in range(8):
        idle.begin(1, 0)
        idle.end(1, ANSWER_S / 2)
    assert idle.limit == MIN_CALLS  # one call at a time says nothing about many


def test_streams_have_a_fixed_limit():
    window = Window(limit=9, is_fixed=True)
    for _ in range(9):
        window.begin(1, 0)
    window.end(1, 0.0001)
    assert window.limit == 9


def test_the_rate_counts_what_is_answered_after_an_answer():
    rate = Rate()
    assert rate.seconds(1000) == 0
    rate.begin(0)
    rate.begin(1)
    rate.begin(2)
    rate.end(30.0, 64)  # the first one waited for the models to be loaded
    rate.end(30.05, 30)  # too soon to tell
    assert rate.per_s is None
    rate.end(30.2, 70)  # 100 in 0.2 s
    assert rate.per_s is not None
    assert round(rate.per_s) == 500
    rate.begin(0)  # idle since
    rate.begin(1)
    rate.end(99.0, 10)
    rate.end(99.2, 300)  # 1500/s, of which three tenths count
    assert round(rate.per_s) == 800
    assert round(rate.seconds(400), 3) == 0.5


def test_one_call_after_the_other_says_nothing_about_the_rate():
    rate = Rate()
    for now in (1.0, 2.0, 3.0):
        rate.begin(0)
        rate.end(now, 64)
    assert rate.per_s is None
