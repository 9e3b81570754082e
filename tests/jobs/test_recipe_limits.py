"""Recipes with huge values are refused quickly, and so are fields that would change nothing."""

import time

import pytest

from crosscope_proto.recipe import RecipeError, parse_recipe

BOMB = "kind: demo-pair\nname: a\na0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize("extra", ["", "seed: *a29\n", "documents: &loop [*loop]\n"])
def test_a_value_of_astronomic_size_is_named_by_its_beginning(extra: str) -> None:
    begun = time.process_time()
    with pytest.raises(RecipeError) as refused:
        parse_recipe(BOMB + extra)
    assert time.process_time() - begun < 1
    assert len(str(refused.value)) < 3000


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(RecipeError, match=r"should match pattern .*, but is 'x+\.\.\.x+'$") as refused:
        parse_recipe(f"kind: demo-pair\nname: {'x' * 1000}\n")
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("pair", "data", "says"),
    [
        ("dtype: bfloat16", "", "pair: a pair that exists already has its own tokenizer"),
        ("revision_chat: main", "", "pair: a pair that exists already has its own tokenizer"),
        ("tokenizer: some/where", "", "pair: a pair that exists already has its own tokenizer"),
        ("", "split: test", "data.0: only a hub data set has a config and a split"),
        ("", "config: en", "data.0: only a hub data set has a config and a split"),
    ],
)
def test_a_field_that_would_change_nothing_is_refused(pair: str, data: str, says: str) -> None:
    recipe = (
        "{kind: crosscoder, name: a, layer: 1, pair: {name: p, %s}, crosscoder: {variant: l1, num_latents: 8, mu: 1}, "
        "data: [{name: web, source: text, path: x, %s}]}"
    )
    parse_recipe((recipe % ("", "")).replace(", }", "}"))
    with pytest.raises(RecipeError) as refused:
        parse_recipe((recipe % (pair, data)).replace(", }", "}"))
    assert says in str(refused.value)
