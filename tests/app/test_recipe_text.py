"""Recipes as text and as forms: values are changed where they stand, and the form says what the schema says."""

import pytest
import yaml

from crosscope import JobInfo, JobState
from crosscope.app import recipe_schema, recipe_text, runs
from crosscope.app.recipe_text import MISSING
from crosscope_proto.recipe import recipe_schema as schema_of_recipes

TEXT = """\
# a comment
kind: crosscoder
name: demo # the name
pair:
  name: demo
data:
  - name: web
    source: jsonl # of lines
    path: data/web.jsonl
training:
  lr: 2.0e-3
  # how long
  max_steps: 400

analysis: {max_tokens: 5}
"""
SCHEMA = schema_of_recipes()


def test_a_value_is_replaced_where_it_stands() -> None:
    assert recipe_text.put(TEXT, ("name",), "other") == TEXT.replace("demo # the", "other # the")
    assert recipe_text.put(TEXT, ("training", "max_steps"), 5) == TEXT.replace("400", "5")
    assert recipe_text.put(TEXT, ("data", 0, "source"), "text") == TEXT.replace("jsonl #", "text #")
    assert recipe_text.put(TEXT, ("analysis", "max_tokens"), 7) == TEXT.replace("5}", "7}")


def test_a_new_value_goes_to_the_end_of_its_part() -> None:
    assert recipe_text.put(TEXT, ("training", "epochs"), 2) == TEXT.replace("400\n", "400\n  epochs: 2\n")
    assert recipe_text.put(TEXT, ("data", 0, "text_column"), "a: b") == TEXT.replace(
        "web.jsonl\n", "web.jsonl\n    text_column: 'a: b'\n"
    )
    assert recipe_text.put(TEXT, ("tokens", "max_length"), 9) == TEXT + "tokens:\n  max_length: 9\n"


def test_what_cannot_be_changed_in_its_place_is_written_anew_and_says_the_same() -> None:
    flow = recipe_text.put(TEXT, ("analysis", "quantiles"), 3)
    assert yaml.safe_load(flow)["analysis"] == {"max_tokens": 5, "quantiles": 3}
    longer = recipe_text.put(TEXT, ("data", 1), {"name": "chat"})
    assert [each["name"] for each in yaml.safe_load(longer)["data"]] == ["web", "chat"]
    assert yaml.safe_load(recipe_text.drop(TEXT, ("data", 0)))["data"] == []


def test_a_value_is_taken_out() -> None:
    assert recipe_text.drop(TEXT, ("training", "lr")) == TEXT.replace("  lr: 2.0e-3\n", "")
    assert recipe_text.drop(TEXT, ("training", "seed")) == TEXT
    assert [*yaml.safe_load(recipe_text.drop(TEXT, ("data", 0, "name")))["data"][0]] == ["source", "path"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.0e-3, "0.002"), (1e-5, "1e-05"), (None, "null"), ([1, 2], "[1, 2]"), ({"a": "b"}, "{a: b}"), (MISSING, "")],
)
def test_values_are_shown_as_they_can_be_typed(value: object, shown: str) -> None:
    assert recipe_text.shown(value) == shown
    if value is not MISSING:
        typed = recipe_text.typed(shown)
        assert typed == value or float(str(typed)) == value


@pytest.mark.parametrize("kind", recipe_schema.kinds(SCHEMA))
def test_every_field_of_every_kind_has_its_help_and_its_place(kind: str) -> None:
    document = {"kind": kind, "data": [{}], "crosscoder": {"variant": "batch_topk"}}
    found = recipe_schema.sections(SCHEMA, document)
    fields = [field for section in found for group in section.groups for field in group.fields]
    assert all(field.help for field in fields), [field.dotted for field in fields if not field.help]
    named = {field.path[0] for field in fields} | {"kind"}
    assert named >= recipe_schema.properties(SCHEMA, kind).keys()


def test_a_form_follows_the_variant_and_says_limits_and_defaults() -> None:
    document = {"kind": "crosscoder", "crosscoder": {"variant": "l1"}}
    found = {section.name: section for section in recipe_schema.sections(SCHEMA, document)}
    fields = {field.dotted: field for section in found.values() for group in section.groups for field in group.fields}
    assert {"crosscoder.mu", "crosscoder.num_latents"} <= fields.keys()
    assert "crosscoder.k" not in fields
    assert "batch_topk" in fields["crosscoder.variant"].choices
    lr, decay = fields["training.lr"], fields["training.decay_share"]
    assert (lr.kind, lr.default, lr.limits, lr.help) == ("value", 0.0001, "> 0", "Learning rate of Adam.")
    assert decay.limits == "≥ 0, ≤ 1"
    assert (fields["training.cache"].kind, fields["training.dtype"].choices) == ("flag", ("float32", "bfloat16"))
    assert (fields["name"].is_required, fields["pair.base"].kind, fields["pair.chat"].kind) == (True, "text", "value")
    assert found["data"].is_list
    assert found["data"].groups == ()
    assert recipe_schema.sections(SCHEMA, {"kind": "none such"}) == []


def job(recipe: str, job_id: str) -> JobInfo:
    return JobInfo(
        id=job_id, kind="demo-pair", name="pair", state=JobState.SUCCEEDED, queue_position=0, after=(), stage="",
        fraction=1, message="", attempt=1, created_at=0, started_at=0, ended_at=0, metrics={}, stage_seconds={},
        version_id="", recipe_yaml=recipe,
    )  # fmt: skip


def test_what_differs_in_recipes_counts_defaults_and_names_the_field() -> None:
    one = job("{kind: demo-pair, name: a, seed: 0}", "j-1111")
    two = job("{kind: demo-pair, name: a, num_layers: 6}", "j-2222")
    assert runs.differences([one, two]) == [("num_layers", ["4", "6"])]
    broken = job("{kind: unknown, name: b, list: [{x: 1}]}", "j-3333")
    rows = dict(runs.differences([one, broken]))
    assert (rows["kind"], rows["list.0.x"]) == (["demo-pair", "unknown"], ["–", "1"])
    assert runs.short_name(one) == "pair 1111"


def test_keys_that_a_kind_or_a_variant_does_not_have_are_found() -> None:
    document = {
        "kind": "crosscoder",
        "sweep_tokens": 3,
        "crosscoder": {"variant": "l1", "num_latents": 4, "k": 2},
        "data": [{"name": "web"}, {"name": "chat", "colour": 1}],
        "training": {"lr": 1, "speed": 9},
    }
    assert recipe_schema.strangers(SCHEMA, document) == [
        ("sweep_tokens",),
        ("data", 1, "colour"),
        ("crosscoder", "k"),
        ("training", "speed"),
    ]
