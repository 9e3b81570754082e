from crosscope_proto.stages import STAGES, Stage, in_order


def test_every_kinds_stages_come_in_the_order_of_all_stages() -> None:
    for stages in STAGES.values():
        names = [stage for stage, _ in stages]
        assert in_order(reversed(names)) == names
    assert {stage for stages in STAGES.values() for stage, _ in stages} == set(Stage)


def test_what_is_no_stage_comes_last_in_its_own_order() -> None:
    assert in_order(["read", "publish", "cache", "load"]) == ["load", "publish", "read", "cache"]
