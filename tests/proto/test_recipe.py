"""Recipes that contradict themselves are refused with a sentence that names the field and its limit."""

import dataclasses
import json
from typing import Any

import pytest

from crosscope_proto.dictionaries import Matryoshka, dictionary
from crosscope_proto.recipe import RecipeError, parse_recipe, recipe_dict

RECIPE = (
    "{{kind: crosscoder, name: a, layer: 1, pair: {{name: p}}, data: [{data}], "
    "crosscoder: {{{crosscoder}}}, training: {{{training}}}}}"
)


def refusal(crosscoder: str, training: str = "", data: str = "{name: web, source: text, path: x}") -> str:
    with pytest.raises(RecipeError) as refused:
        parse_recipe(RECIPE.format(crosscoder=crosscoder, training=training, data=data))
    return str(refused.value)


@pytest.mark.parametrize(
    ("crosscoder", "says"),
    [
        (
            "variant: batch_topk, num_latents: 8, k: 9",
            "crosscoder: k 9 is more than the 8 latents that it chooses from",
        ),
        ("variant: diff_sae, num_latents: 8, k: 9", "crosscoder: k 9 is more than the 8 latents"),
        (
            "variant: delta, num_latents: 8, k: 6, num_delta: 3, k_delta: 1, delta_weight: 1",
            "crosscoder: k 6 is more than the 5 latents that it chooses from",
        ),
        (
            "variant: delta, num_latents: 8, k: 2, num_delta: 3, k_delta: 4, delta_weight: 1",
            "crosscoder: k_delta 4 is more than num_delta 3",
        ),
        (
            "variant: dfc, num_latents: 8, k: 2, num_base_only: 5, num_chat_only: 4",
            "crosscoder: 9 latents are set apart, but num_latents is 8",
        ),
        ("variant: batch_topk, num_latents: 8", "crosscoder: batch_topk needs k; k is missing"),
        ("variant: l1, num_latents: 8, mu: 1, k: 2", "crosscoder: l1 needs mu and takes no k"),
        ("variant: l1, num_latents: 8, mu: 1, num_delta: 0", "crosscoder: l1 needs mu and takes no num_delta"),
        ("variant: l1, num_latents: 8, mu: 1, bandwidth: 0.1", "crosscoder: l1 needs mu and takes no bandwidth"),
        ("variant: jumprelu, num_latents: 8", "crosscoder: jumprelu needs mu; mu is missing"),
        ("variant: l1, num_latents: 8, mu: 1, cross_term: -0.5", "crosscoder: cross_term needs squared: true"),
        (
            "variant: l1, num_latents: 8, mu: 1, code_normalisation: decoupled",
            "crosscoder: decoupled selects for each model apart; l1 cannot",
        ),
        ("variant: diff_sae, num_latents: 8, k: 2, cross_term: -0.5", "diff_sae needs k and takes no cross_term"),
        ("variant: diff, num_latents: 8, k: 2", "variant must be one of batch_topk, topk, l1, designated_shared, dfc"),
        ("num_latents: 8, k: 2", "crosscoder: variant must be one of batch_topk"),
        ("variant: topk, num_latents: 8, k: 2, mu: 1", "crosscoder: topk needs k and takes no mu"),
        ("variant: l1, mu: 1", "crosscoder.num_latents: must be given"),
        ("variant: l1, num_latents: 8, mu: 1, nu: 2", "crosscoder.nu: no such key; check its spelling"),
        (
            "variant: matryoshka, num_latents: 8, k: 2, prefixes: [2, 2, 8]",
            "crosscoder: prefixes [2, 2, 8] do not ascend",
        ),
        (
            "variant: matryoshka, num_latents: 8, k: 2, prefixes: [2, 4]",
            "crosscoder: the last of prefixes is 4, but must be num_latents 8",
        ),
        ("variant: matryoshka, num_latents: 8, k: 2, prefixes: [0, 8]", "crosscoder.prefixes.0: Input should be"),
        (
            "variant: matryoshka, num_latents: 9, k: 2, prefixes: [1, 2, 3, 4, 5, 6, 7, 8, 9]",
            "crosscoder.prefixes: Tuple should have at most 8 items",
        ),
        ("variant: batch_topk, num_latents: 8, k: 2, prefixes: [8]", "batch_topk needs k and takes no prefixes"),
        ("variant: l1, num_latents: 8, mu: .nan", "crosscoder.mu: Input should be a finite number, but is nan"),
    ],
)
def test_a_dictionary_that_contradicts_itself_is_refused(crosscoder: str, says: str) -> None:
    assert says in refusal(crosscoder)


@pytest.mark.parametrize(
    ("num_latents", "prefixes"),
    [(65536, (2048, 6144, 14336, 30720, 65536)), (16, (1, 3, 7, 16)), (1, (1,))],
)
def test_prefixes_are_those_of_the_paper_unless_given(num_latents: int, prefixes: tuple[int, ...]) -> None:
    spec = dictionary(variant="matryoshka", num_latents=num_latents, k=1)
    assert isinstance(spec, Matryoshka)
    assert spec.prefixes == prefixes
    assert dictionary(**dataclasses.asdict(spec)) == spec


@pytest.mark.parametrize(
    ("crosscoder", "training", "says"),
    [
        ("batch_topk, k: 4", "k_start: 9, sparsity_warmup_steps: 5", "between crosscoder.k 4 and the 8 latents"),
        ("batch_topk, k: 4", "k_start: 3, sparsity_warmup_steps: 5", "between crosscoder.k 4 and the 8 latents"),
        (
            "delta, k: 4, num_delta: 2, k_delta: 1, delta_weight: 1",
            "k_start: 7, sparsity_warmup_steps: 5",
            "between crosscoder.k 4 and the 6 latents",
        ),
        ("batch_topk, k: 4", "k_start: 6", "training.k_start needs training.sparsity_warmup_steps"),
        ("batch_topk, k: 4", "sparsity_warmup_steps: 5", "training.sparsity_warmup_steps needs training.k_start"),
    ],
)
def test_a_first_k_that_is_none_is_refused(crosscoder: str, training: str, says: str) -> None:
    assert says in refusal(f"num_latents: 8, variant: {crosscoder}", training)


def test_a_fall_of_the_learning_rate_needs_an_end() -> None:
    hub, l1 = "{name: web, source: hub, path: some/texts, text_column: text%s}", "variant: l1, num_latents: 8, mu: 1"
    says = "give training.max_steps, or max_tokens of the data set 'web'"
    assert says in refusal(l1, "decay_share: 0.5", hub % "")
    for training, data in [
        ("decay_share: 0.5, max_steps: 9", ""),
        ("decay_share: 0.5", ", max_tokens: 9"),
        ("lr: 1", ""),
    ]:
        parse_recipe(RECIPE.format(crosscoder=l1, training=training, data=hub % data))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    assert "training.seed: Input should be" in refusal("variant: l1, num_latents: 8, mu: 1", f"seed: {seed}")


def test_two_data_sets_of_one_name_are_refused() -> None:
    twice = "{name: web, source: text, path: x}, {name: web, source: text, path: y}"
    assert refusal("variant: l1, num_latents: 8, mu: 1", data=twice) == "two data sets have the name 'web'"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{name: a, source: jsonl, path: x}", "exactly one of text_column and chat_column must be given"),
        ("{name: a, source: jsonl, path: x, text_column: b, chat_column: c}", "exactly one of text_column"),
        ("{name: a, source: text, path: x, text_column: b}", "the source text has no columns"),
        ("{name: a, source: jsonl, path: x, text_column: b, behaviours_column: c}", "behaviours_column needs chat"),
    ],
)
def test_columns_that_do_not_fit_are_refused(data: str, says: str) -> None:
    assert says in refusal("variant: l1, num_latents: 8, mu: 1", data=data)


@pytest.mark.parametrize("given", ["base", "chat"])
def test_half_a_pair_is_refused(given: str) -> None:
    document: dict[str, Any] = {"name": "p", given: "some/model"}
    with pytest.raises(RecipeError, match="base and chat must be given together"):
        parse_recipe(
            f"{{kind: crosscoder, name: a, layer: 1, pair: {document}, "
            "crosscoder: {variant: l1, num_latents: 8, mu: 1}, data: [{name: w, source: text, path: x}]}"
        )


TOLD = "kind: {kind}\nname: a\nlayer: 1\npair: {{name: p}}\ndata: [{{name: web, source: text, path: x}}]\n{more}"
KINDS = {"crosscoder": "crosscoder: {variant: batch_topk, num_latents: 8, k: 2}\n", "published": "path: x\n"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_chat_template_is_told(kind: str) -> None:
    def parsed(more: str) -> dict[str, Any]:
        return recipe_dict(parse_recipe(TOLD.format(kind=kind, more=KINDS[kind] + more)))

    assert (parsed("")["chat_template_date"], parsed("")["chat_template_kwargs"]) == (None, {})
    for written in ("2026-03-05", '"2026-03-05"'):
        assert parsed(f"chat_template_date: {written}")["chat_template_date"] == "2026-03-05"
    for wrong in ("5", "5.5", "true", "2026-03-05 10:00:00", '"2026-3-5"', '"x"', "[1]"):
        with pytest.raises(RecipeError, match="chat_template_date: must be a day YYYY-MM-DD, but is"):
            parsed(f"chat_template_date: {wrong}")
    kwargs = {"enable_thinking": False, "tools": [{"name": "look", "parameters": {"n": None}}]}
    assert parsed(f"chat_template_kwargs: {json.dumps(kwargs)}")["chat_template_kwargs"] == kwargs
    for wrong, says in (
        ("{tokenize: true}", "chat_template_kwargs: 'tokenize' cannot be given to a chat template"),
        ("{documents: x}", "chat_template_kwargs: 'documents' must be a list of objects"),
        ("[1]", "chat_template_kwargs: .*dictionary"),
    ):
        with pytest.raises(RecipeError, match=says):
            parsed(f"chat_template_kwargs: {wrong}")


@pytest.mark.parametrize("kind", KINDS)
def test_how_float32_products_are_made(kind: str) -> None:
    def parsed(more: str) -> object:
        return recipe_dict(parse_recipe(TOLD.format(kind=kind, more=KINDS[kind] + more)))["float32"]

    assert [parsed(more) for more in ("", "float32: ieee", "float32: tf32")] == [None, "ieee", "tf32"]
    with pytest.raises(RecipeError, match="float32: Input should be 'ieee' or 'tf32', but is 'bf16'"):
        parsed("float32: bf16")


def test_fields_of_other_dictionaries_that_are_null_are_left_out() -> None:
    """As manifests of before have them."""
    text = RECIPE.format(
        crosscoder="variant: diff_sae, num_latents: 8, k: 2, mu: null, num_delta: null, cross_term: 0.0",
        training="",
        data="{name: web, source: text, path: x}",
    )
    found = recipe_dict(parse_recipe(text))["crosscoder"]
    assert found == {
        "variant": "diff_sae",
        "num_latents": 8,
        "k": 2,
        "squared": False,
        "code_normalisation": "crosscoder",
    }


def test_yes_is_no_number() -> None:
    says = refusal("variant: batch_topk, num_latents: 8, k: yes", "batch_size: true, cache: true, streams: on")
    assert sorted(says.split("; ")) == [
        "crosscoder.k: must be a number, but is true",
        "training.batch_size: must be a number, but is true",
        "training.streams: must be a number, but is true",
    ]
    recipe = parse_recipe(
        RECIPE.format(data="{name: web, source: text, path: x}", crosscoder="variant: batch_topk, num_latents: 8, k: 2",
                      training="cache: yes")[:-1] + ", chat_template_kwargs: {enable_thinking: true, depth: [1, true]}}"
    )  # fmt: skip
    assert getattr(recipe, "chat_template_kwargs") == {"enable_thinking": True, "depth": [1, True]}  # noqa: B009
