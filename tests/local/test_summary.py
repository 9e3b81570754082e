import io
import math

import pytest
from rich.console import Console

from crosscope import Judgement, SpecificTo, Verdict
from crosscope_local.summary import BehaviourRow, CrosscoderSummary, DetectorRow, Query, Summary, chat_datasets, finite
from crosscope_local.summary_table import render

WEAK = Judgement(Verdict.WEAK, SpecificTo.CHAT, ("activation ratio 0.4 > 0.15",))


def row(behaviour: str, place: str, recall: float, false_rate: float) -> DetectorRow:
    return DetectorRow(behaviour, place, 7, recall, false_rate, 12, 0.8, 0.1, math.nan, None, WEAK)


DEMO = CrosscoderSummary(
    name="demo",
    pair="pair",
    layer=2,
    variant="batch_topk",
    num_latents=1024,
    training_tokens=2_000_000,
    analysis_tokens=60_000,
    metrics={"fve_base": 0.99999, "fve_base_inliers": 0.98765, "l0": 12.0},
    class_counts={"chat_only": 3},
    detectors=(
        row("refusal", "decision", 0.9, 0.1),
        row("refusal", "within", 1.0, 0.2),
        row("apology", "decision", 0.89, 0.0),
        row("apology", "within", 0.95, 0.0),
        row("greeting", "decision", 1.0, 0.11),
    ),
    chat_specific=20,
    chat_specific_on_chats=17,
)


BEHAVIOURS = (
    BehaviourRow("refusal", 4, {"chat": 4, "base": 0, "chat ablated": 1}, (7, 9)),
    BehaviourRow("apology", 6, {"chat": 3, "base": 0, "chat ablated": 0}, (8,)),
)


def only(text: str) -> str:
    """The text without the lines of a table."""
    return " ".join("".join(" " if c in "┏━┓┃┡╇┩└─┴┘┳┻" else c for c in text).split())


@pytest.mark.parametrize(
    ("place", "found"), [(None, ("refusal", "apology")), ("decision", ("refusal",)), ("within", ("apology",))]
)
def test_a_behaviour_is_found_at_the_limits_of_recall_and_false_rate(place: str | None, found: tuple[str, ...]) -> None:
    assert DEMO.behaviours_found(place) == found
    assert DEMO.behaviours == ("refusal", "apology", "greeting")


def test_the_tables_say_what_was_found_and_what_is_not_known() -> None:
    stages = {"crosscoder demo": {"publish": 0.25, "train": 60.0, "load": 1.0}}
    out = io.StringIO()
    query = Query("demo", "who are you ?", ((7, 3.5),), 16, 4.0, 1.5)
    Console(file=out, width=160).print(render(Summary((DEMO,), stages, query, BEHAVIOURS)))
    text = " ".join(out.getvalue().replace("│", " ").split())
    assert "FVE base, inliers 0.988 FVE chat, inliers –" in text
    assert "of the first 20 that base lacks, ≥ 80% on chats 17 of 20" in text
    assert "behaviours found on the decision token 1 of 3" in text
    assert "refusal decision 7 0.9 0.1 12 0.8 0.1 – – weak (chat) yes" in text
    assert "load 1.0, train 60.0, publish 0.2" in text
    assert "fires latents 7 (3.5); 4.0 ms, 1.5 ms cached." in text
    assert "behaviour n chat base chat ablated refusal 4 100% 0% 25% apology 6 50% 0% 0% all 10 70% 0% 10%" in only(
        text
    )


def test_a_data_set_of_chats_has_a_chat_column_in_the_recipe() -> None:
    manifest = '{"recipe": {"data": [{"name": "chat", "chat_column": "c"}, {"name": "web", "text_column": "t"}]}}'
    assert chat_datasets(manifest, ["web", "chat"]) == [1]


def test_undefined_numbers_become_none_in_json() -> None:
    assert finite({"a": (math.nan, 1.5), "b": [math.inf, "x"]}) == {"a": [None, 1.5], "b": [None, "x"]}
