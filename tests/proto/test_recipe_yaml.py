"""A recipe's text is read within bounds, and whatever it holds, it is a recipe or a RecipeError."""

import json
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope_proto.recipe import (
    CrosscoderRecipe,
    DemoPairRecipe,
    PublishedRecipe,
    RecipeError,
    parse_recipe,
    recipe_dict,
)
from crosscope_proto.recipe_yaml import MAX_BYTES, MAX_NODES, YamlTextError, load_yaml

ROOT = Path(__file__).parents[2]
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 18)}]}}\n" for i in range(1, 7))
"""Six levels of 18 merge keys: once 27 s and 1.9 GB."""
DEMO = "kind: demo-pair\nname: a\n"


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as refused:
        parse_recipe(text)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{DEMO}seed: 2001-99-99\n", "seed: Input should be a valid integer"),
        (f"{DEMO}seed: !!int x\n", "line 3: 'x' is not a valid int"),
        (f"{DEMO}seed: !!int\n", "line 3: '' is not a valid int"),
        (f"{DEMO}seed: !!bool x\n", "line 3: 'x' is not a valid bool"),
        (f"{DEMO}seed: !!float x\n", "line 3: 'x' is not a valid float"),
        (f"{DEMO}seed: !!timestamp x\n", "line 3: not valid YAML: could not determine a constructor"),
        (f"{DEMO}seed: !!binary '%'\n", "line 3: not valid YAML: could not determine a constructor"),
        (f"{DEMO}seed: !!python/name:os.system x\n", "line 3: not valid YAML: could not determine a constructor"),
        (f"{DEMO}seed: {'9' * 5000}\n", "line 3: '99999999999999999999999999999999999…' has too many digits"),
        (f"{DEMO}seed: {10**400}\n", "is too large: a whole number must lie within ±2^64"),
        (f"{DEMO}seed: 0x{'f' * 9000}\n", "is too large"),
        (f"{DEMO}seed: {':'.join(['59'] * 900)}\n", "is too large"),
        (f"{DEMO}documents: 1.0e+300\n", "documents: Unable to parse input string as an integer"),
        (f"{DEMO}documents: .inf\n", "documents: Input should be a finite number, but is inf"),
        (f"{DEMO}documents: 100000000000000\n", "documents: Input should be less than or equal to 10000000"),
        (f'{DEMO}seed: "\\0"\n', "line 3: a text holds the character U+0000"),
        (f'{DEMO}seed: "\\ud800"\n', "line 3: a text holds the character U+D800"),
        (f'{DEMO}seed: "\\U00110000"\n', "line 3: not valid YAML: chr() arg not in range"),
        (f"{DEMO}seed: \0\n", "not valid YAML: unacceptable character #x0000"),
        (f"{DEMO}seed: \ud800\n", "not valid YAML: unacceptable character #xd800"),
        (f"{DEMO}name: b\n", "line 3: the key 'name' occurs twice in one mapping"),
        (f"{DEMO}3: b\n", "line 3: the key '3' is not a text; put it in quotes"),
        (f"{DEMO}on: b\n", "line 3: the key 'on' is not a text"),
        (f"{DEMO}? [a]\n: b\n", "line 3: the key a list is not a text"),
        (f"{DEMO}seed: &s [*s]\n", "line 3: an alias stands inside the value that it names"),
        (f"{DEMO}seed: *s\n", "line 3: not valid YAML: found undefined alias 's'"),
        (f"{DEMO}seed: {'[' * 40}\n", "line 3: more than 32 lists and mappings stand inside one another"),
        (f"{DEMO}seed: [{'a,' * MAX_NODES}]\n", f"line 3: holds more than {MAX_NODES} values"),
        (
            f"{DEMO}seed: {'a' * MAX_BYTES}\n",
            f"has {MAX_BYTES + len(DEMO) + 7} bytes, but may have at most {MAX_BYTES}",
        ),
        (f"%YAML 1.{'9' * 5000}\n---\n{DEMO}", "not valid YAML"),
        (f"{DEMO}---\n{DEMO}", "line 3: not valid YAML: expected a single document"),
        ("", "a recipe is a YAML mapping"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused_by_line_and_value(text: str, says: str) -> None:
    assert says in refusal(text)
    assert len(refusal(text)) < 500


@pytest.mark.parametrize("text", [MERGES, MERGES + DEMO, f"{DEMO}seed: *a6\n{MERGES}", f"{MERGES}<<: *a6\n{DEMO}"])
def test_merge_keys_count_with_all_that_they_stand_for(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(YamlTextError, match=f"holds more than {MAX_NODES} values|undefined alias"):
        load_yaml(text)
    assert time.process_time() - begun < 1


def test_aliases_merge_keys_and_dates_of_sensible_size_are_read() -> None:
    text = "base: &base {name: p, revision_chat: 2024-01-31}\npair: {<<: *base, name: q}\nlist: [*base, *base]\n"
    base = {"name": "p", "revision_chat": "2024-01-31"}
    assert load_yaml(text) == {"base": base, "pair": base | {"name": "q"}, "list": [base, base]}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_read_as_they_always_did(path: Path) -> None:
    assert load_yaml(path.read_text()) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    "text",
    ["[" + "[]," * 21_000 + "]", "{" * 60_000, '"' + "\\x41" * 16_000 + '"', "a:\n" + "- a\n" * 16_000, "\n" * 65_000],
)
def test_the_largest_texts_are_read_in_a_moment(text: str) -> None:
    begun = time.process_time()
    refusal(text)
    assert time.process_time() - begun < 3  # 0.35 s on an idle core


ODD = [
    "1",
    "-1",
    "0",
    "1e999",
    ".inf",
    "-.Inf",
    ".NaN",
    "~",
    "yes",
    "2001-99-99",
    "12:30:45",
    "0o7",
    "08",
    "1_0",
    "=",
    "<<",
    "&a",
    "*a",
    "'",
    '"',
    "[",
    "{",
    "}",
    "|",
    ">-",
    "{}",
    "[]",
    "[[]]",
    "%TAG",
    "---",
    "!x",
    '"\\u0000"',
]
ODD += ["!!int x", "!!bool 3", "!!str 3", "!!null x", "&a 1", "{a: 1}", "- a", "? b", "{<<: *a}"]
ODD += ["9" * 400, "9" * 4400, "0x" + "f" * 80, "1." + "0" * 400]
SCALARS = st.sampled_from(ODD) | st.text(max_size=12)
KEYS = [
    "kind",
    "name",
    "pair",
    "layer",
    "path",
    "data",
    "crosscoder",
    "training",
    "tokens",
    "analysis",
    "seed",
    "documents",
    "<<",
    "1",
    "true",
    "~",
    "[a]",
    "*k",
]
KEYS += ["&k k", "k: {num_latents", "revision"]
ALL_KEYS = {field.name for kind in (CrosscoderRecipe, DemoPairRecipe, PublishedRecipe) for field in fields(kind)}
VALID = (ROOT / "recipes" / "demo.yaml").read_text().splitlines()


class Reference(yaml.SafeLoader):
    """PyYAML's own loader, which reads dates as texts."""


Reference.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def check_violations(error: RecipeError, value: object) -> None:
    """Every violation names a place that is there or should be, and its sentence says something and can travel."""
    assert error.violations
    for path, sentence in error.violations:
        assert 0 < len(sentence.encode()) < 1000
        top = path.partition(".")[0]
        assert not top or top in ALL_KEYS or (isinstance(value, dict) and top in value)


def outcome(text: str) -> str:
    """Whether a text is a "recipe", a "value" that is none, or no "yaml" within the bounds. Checks what is said."""
    try:
        value = load_yaml(text)
    except YamlTextError:
        assert refusal(text)
        return "yaml"
    assert repr(value) == repr(yaml.load(text, Reference)), "what is read is what PyYAML reads"
    try:
        recipe = parse_recipe(text)
    except RecipeError as error:
        check_violations(error, value)
        return "value"
    plain = recipe_dict(recipe)
    assert json.dumps(plain, allow_nan=False)
    assert parse_recipe(yaml.safe_dump(plain)) == recipe, "what is kept of it is the same recipe"
    assert isinstance(value, dict)
    for name, said in value.items():
        assert isinstance(said, dict | list) or said in (plain[name], str(plain[name])), "every plain value is kept"
    return "recipe"


def test_texts_of_odd_parts_are_recipes_or_refused() -> None:
    seen: Counter[str] = Counter()

    @given(st.lists(st.tuples(st.sampled_from(KEYS), SCALARS), max_size=8), st.sampled_from(["", DEMO]))
    @settings(max_examples=300, deadline=None)
    def check(lines: list[tuple[str, str]], head: str) -> None:
        seen[outcome(head + "".join(f"{key}: {value}\n" for key, value in lines))] += 1

    check()
    assert min(seen["value"], seen["yaml"]) > 0, seen


def test_a_recipe_with_other_values_is_a_recipe_or_refused() -> None:
    seen: Counter[str] = Counter()

    @given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), SCALARS), min_size=1, max_size=3))
    @settings(max_examples=200, deadline=None)
    def check(changes: list[tuple[int, str]]) -> None:
        lines = list(VALID)
        for place, value in changes:
            lines[place] = f"{lines[place].partition(': ')[0]}: {value}"
        seen[outcome("\n".join(lines))] += 1

    check()
    assert min(seen["recipe"], seen["value"], seen["yaml"]) > 0, seen


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_is_refused(text: str) -> None:
    assert outcome(text) != "recipe"
