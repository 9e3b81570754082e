"""The plan of an analysis: which texts are taken, how they are cut and shared out, worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import AnalysisSpec, TokenPolicy
from crosscope_worker.analysis.cutting import Cutter
from crosscope_worker.analysis.plan import Plan, PlanError, Planned, Reference, plan_of, write_texts
from crosscope_worker.data.texts import TaggedBehaviour, Text
from crosscope_worker.models.norms import NormBounds


def text(dataset: int, *ids: int, behaviours: tuple[TaggedBehaviour, ...] = ()) -> Text:
    """A text of BOS, which is not read, and users' tokens."""
    roles = np.array([TokenRole.BOS, *[TokenRole.USER] * len(ids)], np.uint8)
    return Text(dataset, np.array([0, *ids]), roles, behaviours, f"line {ids}")


WINDOWS = [
    [text(0, 1, 2, 3), text(1, 4, 5), text(0, 6)],
    [text(1, 7), text(0, 1, 2, 8), text(0, 9)],
    [text(1, 4, 5, behaviours=(TaggedBehaviour("greets", 0, 1, 3),)), text(0, 1)],
]
POLICY = TokenPolicy()


def planned(folder: Path, num_parts: int | None = None) -> Plan:
    cutter = Cutter(AnalysisSpec(max_tokens=10, num_shards=2), 2, block_tokens=4)
    windows = list(write_texts(folder, WINDOWS, POLICY, cutter))
    return plan_of(folder, "key", windows, num_parts, [{"read": 8}])


def test_budgets_blocks_shards_and_repeats_by_hand(tmp_path: Path):
    """Five tokens of each data set, blocks of four tokens or of what a window has left."""
    plan = planned(tmp_path)
    assert plan.windows == (Planned(3, 6), Planned(3, 4), Planned(2, 2))
    read = [cut for _, cut in plan.read(tmp_path, 0)]
    # 4 + 1 tokens of data set 0 are left before its text of three, which is taken whole; then it is full.
    assert [cut.block.tolist() for cut in read] == [[0, 0, 1], [2, 2, -1], [3, -1]]
    # BOS is not read: -1. Blocks 0 and 2 are of shard 0, 1 and 3 of shard 1, but 4, 5 in block 3 were read in block 0,
    # and so were 1, 2 of block 2.
    assert [cut.shard.tolist() for cut in read] == [
        [-1, 0, 0, 0, -1, 0, 0, -1, 1],
        [-1, 0, -1, 0, 0, 0, -1, -1],
        [-1, 0, 0, -1, -1],
    ]
    assert [np.flatnonzero(cut.repeats).tolist() for cut in read] == [[], [3, 4], [1, 2]]


def test_texts_come_back_as_they_were(tmp_path: Path):
    plan = planned(tmp_path, num_parts=2)
    assert plan.parts == ((0, 1), (1, 3))
    assert [plan.first_text(part) for part in (0, 1)] == [0, 3]
    assert [plan.first_token(part) for part in (0, 1)] == [0, 6]
    for part, windows in ((0, WINDOWS[:1]), (1, WINDOWS[1:])):
        for ours, (theirs, _) in zip(windows, plan.read(tmp_path, part), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert (one.dataset, one.behaviours, one.place) == (other.dataset, other.behaviours, other.place)
                assert one.ids.tolist() == other.ids.tolist()
                assert one.roles.tolist() == other.roles.tolist()
                assert (other.ids.dtype, other.roles.dtype) == (np.int64, np.uint8)


@pytest.mark.parametrize(
    ("num_windows", "tokens", "wanted", "expected"),
    [(7, 100, 3, [2, 2, 3]), (2, 100, 5, [1, 1]), (5, 1_000_000, None, [1, 2, 2]), (5, 400_001, None, [2, 3]),
     (5, 400_000, None, [5]), (0, 0, None, [0])],
)  # fmt: skip
def test_parts_are_whole_windows(
    tmp_path: Path, num_windows: int, tokens: int, wanted: int | None, expected: list[int]
):
    planned(tmp_path)
    windows = [Planned(1, tokens)] * num_windows
    assert [last - first for first, last in plan_of(tmp_path, "", windows, wanted, []).parts] == expected


def test_a_plan_is_read_as_it_was_written_and_damage_is_seen(tmp_path: Path):
    plan = Plan(**{**vars(planned(tmp_path)), "reference": Reference(NormBounds((1.5, 2.5), (0, 3)), (0.1, 7.0))})
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    texts = tmp_path / "texts.arrow"
    texts.write_bytes(texts.read_bytes()[:-1])
    with pytest.raises(PlanError, match="is not what was written"):
        Plan.load(tmp_path)
    with pytest.raises(PlanError, match="cannot be read"):
        list(Plan.load(tmp_path, whole=False).read(tmp_path, 0))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path)
