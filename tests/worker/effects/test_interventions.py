"""Changes of a stream against values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT, TokenRole
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import ALL_POSITIVE, AboveModelThresholds, LargestOfToken
from crosscope_worker.dictionary.streams import DIFFERENCE, STREAMS
from crosscope_worker.effects.interventions import (
    Action,
    DecoderRow,
    Intervention,
    InterventionError,
    Reach,
    Site,
    Steering,
)

X = torch.tensor([[1.0, 0.0, 2.0, 4.0], [0.0, 2.0, -4.0, 0.0]])
"""Two tokens whose raw codes are (3, 2, 0) and (0, 0, 4)."""
MAXIMA = torch.tensor([6.0, torch.nan, 9.0])
"""Over norms 3, √2 and 3: raw maxima 2, none and 3."""
MEAN = torch.tensor([1.0, -2.0, 3.0, 5.0])


def crosscoder() -> Crosscoder:
    """Base's input counts twice and chat's half. In the models' own scale the rows are: latent 0 (½, 0) in base and
    (0, 4) in chat; latent 1 chat's alone, (2, 2); latent 2 base's alone, (0, 1½).
    """
    W_enc = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    W_dec = torch.tensor([[1.0, 0, 0, 2], [0, 0, 1, 1], [0, 3, 0, 0]])
    bias = torch.tensor([9.0, 9, 9, 9])
    return Crosscoder(W_enc, torch.zeros(3), W_dec, bias, (2, 2), "hand", keep=ALL_POSITIVE, input_scale=(2.0, 0.5))


def site(num_tokens: int = 2, **given: Tensor) -> Site:
    """A prompt of text tokens, none of them left out."""
    nowhere = torch.zeros(num_tokens, dtype=torch.bool)
    usual = {"roles": torch.full((num_tokens,), TokenRole.TEXT, dtype=torch.uint8)}
    return Site(**{"positions": torch.arange(num_tokens), "is_generated": nowhere, "left_out": nowhere} | usual | given)


def delta(model: int, *interventions: Intervention, of: Crosscoder | None = None, x: Tensor = X) -> list[list[float]]:
    steering = Steering(of or crosscoder(), MAXIMA, model, interventions)
    return steering.change(x, site(len(x))).delta.tolist()


def do(action: Action, *latents: int, **given: object) -> Intervention:
    return Intervention(latents, action, **given)  # pyright: ignore[reportArgumentType]


OWN, OTHER, DIFF = DecoderRow
ADDED = {
    (CHAT, OWN): [0, 4],
    (CHAT, OTHER): [0.5, 0],
    (CHAT, DIFF): [-0.5, 4],
    (BASE, OWN): [0.5, 0],
    (BASE, OTHER): [0, 4],
    (BASE, DIFF): [-0.5, 4],
}
"""One unit of latent 0, along each row."""


@pytest.mark.parametrize(("model", "row"), ADDED)
def test_every_action_along_every_row(model: int, row: DecoderRow):
    unit = torch.tensor(ADDED[model, row])
    cases = {
        do(Action.ADD, 0, amount=1.5, row=row): (3, 3),  # one and a half times the maximum, 2, at every token
        do(Action.SCALE, 0, amount=3.0, row=row): (6, 0),
        do(Action.SCALE, 0, amount=1.0, row=row): (0, 0),
        do(Action.SET, 0, amount=1.0, row=row): (-1, 2),
        do(Action.SET, 0, amount=-0.5, row=row): (-4, -1),
        do(Action.ABLATE, 0, row=row): (-3, 0),
    }
    for intervention, units in cases.items():
        assert delta(model, intervention) == [(each * unit).tolist() for each in units], intervention.action


def test_latents_of_one_intervention_add_up_and_transplants_exchange_rows():
    assert delta(CHAT, do(Action.ABLATE, 0, 1)) == [[-4, -16], [0, 0]]
    assert delta(CHAT, do(Action.TRANSPLANT, 0, 1)) == [[1.5 - 4, -12 - 4], [0, 0]]
    assert delta(BASE, do(Action.TRANSPLANT, 0, 1)) == [[4 - 1.5, 4 + 12], [0, 0]]
    assert delta(BASE, do(Action.TRANSPLANT, 0, 1, 2)) == [[2.5, 16], [0, -6]]


def test_whole_streams_are_exchanged():
    assert delta(CHAT, do(Action.SWAP_STREAM)) == [[-1, -4], [4, 2]]
    assert delta(BASE, do(Action.SWAP_STREAM)) == [[1, 4], [-4, -2]]


def test_the_mean_of_the_inputs_changes_codes_and_no_rows():
    centred = replace(crosscoder(), input_mean=MEAN)
    assert delta(CHAT, do(Action.ABLATE, 0, 1), of=centred, x=X + MEAN) == [[-4, -16], [0, 0]]
    assert delta(CHAT, do(Action.ADD, 0, amount=1.0), of=centred) == [[0, 8], [0, 8]]


def test_a_rule_of_the_dictionary_decides_what_fires():
    one = replace(crosscoder(), keep=LargestOfToken(1))  # at the first token latent 0 wins: 3 · 3 against 2 · √2
    assert delta(CHAT, do(Action.ABLATE, 0, 1), of=one) == [[0, -12], [0, 0]]


def test_a_decoupled_code_is_what_each_model_keeps():
    """Latent 0 is 3 times 1 in base, which does not reach 3.5, and 3 times 2 in chat, which does."""
    keep = AboveModelThresholds(torch.full((2, 3), 3.5))
    apart = replace(crosscoder(), keep=keep, code_normalisation="decoupled")
    assert delta(BASE, do(Action.ABLATE, 0), of=apart) == [[0, 0], [0, 0]]
    assert delta(CHAT, do(Action.ABLATE, 0), of=apart) == [[0, -12], [0, 0]]
    assert delta(BASE, do(Action.TRANSPLANT, 0), of=apart) == [[0, 12], [0, 0]]
    assert delta(CHAT, do(Action.TRANSPLANT, 0), of=apart) == [[0, -12], [0, 0]]
    assert delta(BASE, do(Action.ABLATE, 0, row=OTHER), of=apart) == [[0, -12], [0, 0]]
    assert delta(BASE, do(Action.SET, 0, amount=1.0), of=apart) == [[1, 0], [1, 0]]


def test_several_interventions_add_up_from_the_unchanged_stream():
    add, ablate = do(Action.ADD, 0, amount=1.0), do(Action.ABLATE, 0)
    assert delta(CHAT, add, ablate) == [[0, -4], [0, 8]]
    assert delta(CHAT, ablate, add) == delta(CHAT, add, ablate)
    assert delta(CHAT, add, add) == [[0, 16], [0, 16]]


def test_a_latent_that_never_fired_in_the_analysis_can_be_taken_away():
    assert delta(CHAT, do(Action.ABLATE, 1)) == [[-4, -4], [0, 0]]
    assert delta(CHAT, do(Action.SET, 1, amount=0.0)) == [[-4, -4], [0, 0]]
    assert delta(CHAT, do(Action.ADD, 1, amount=0.0)) == [[0, 0], [0, 0]]


WHERE = site(
    4,
    roles=torch.tensor([TokenRole.BOS, TokenRole.USER, TokenRole.ASSISTANT, TokenRole.ASSISTANT], dtype=torch.uint8),
    is_generated=torch.tensor([False, False, False, True]),
    left_out=torch.tensor([True, False, False, False]),
)


@pytest.mark.parametrize(
    ("given", "changed", "spared"),
    [
        ({}, [1, 2, 3], [0]),
        ({"include_left_out": True}, [0, 1, 2, 3], []),
        ({"reach": Reach.PROMPT}, [1, 2], [0]),
        ({"reach": Reach.GENERATED}, [3], []),
        ({"roles": frozenset({int(TokenRole.ASSISTANT)})}, [2, 3], []),
        ({"positions": frozenset({0, 1, 99})}, [1], [0]),
        ({"roles": frozenset({int(TokenRole.ASSISTANT)}), "reach": Reach.PROMPT}, [2], []),
        ({"roles": frozenset({int(TokenRole.USER)}), "positions": frozenset({2})}, [], []),
    ],
)
@pytest.mark.parametrize("action", [Action.ADD, Action.ABLATE, Action.TRANSPLANT, Action.SWAP_STREAM])
def test_where_a_stream_is_changed(action: Action, given: dict, changed: list[int], spared: list[int]):
    latents = () if action is Action.SWAP_STREAM else (0,)
    each = Intervention(latents, action, 1.0 if action is Action.ADD else 0.0, **given)
    found = Steering(crosscoder(), MAXIMA, CHAT, [each]).change(X[:1].expand(4, -1), WHERE)
    assert found.changed.nonzero()[:, 0].tolist() == changed
    assert found.spared.nonzero()[:, 0].tolist() == spared
    assert found.delta.any(dim=1).nonzero()[:, 0].tolist() == changed


def test_a_latent_that_does_not_fire_changes_nothing_when_it_is_taken_away():
    found = Steering(crosscoder(), MAXIMA, CHAT, [do(Action.ABLATE, 0)]).change(X, site())
    assert found.changed.tolist() == [True, False]


def test_a_token_that_one_intervention_changes_is_not_spared():
    pair = [do(Action.ADD, 0, amount=1.0), do(Action.ABLATE, 0, include_left_out=True)]
    found = Steering(crosscoder(), MAXIMA, CHAT, pair).change(X[:1].expand(4, -1), WHERE)
    assert found.spared.tolist() == [False] * 4
    assert found.delta[0].tolist() == [0, -12]
    assert found.delta[1].tolist() == [0, -4]


def test_only_an_added_row_needs_no_streams():
    steering = Steering(crosscoder(), MAXIMA, CHAT, [do(Action.ADD, 0, amount=1.0)])
    assert not steering.needs_code
    assert steering.change(None, site()).delta.tolist() == [[0, 8], [0, 8]]
    for each in (do(Action.SET, 0, amount=1.0), do(Action.SWAP_STREAM)):
        assert Steering(crosscoder(), MAXIMA, CHAT, [each]).needs_code


def differences() -> Crosscoder:
    """Reads and writes chat less base; latents 0 and 1 are the halves of the first axis."""
    rows = torch.tensor([[1.0, 0], [-1, 0], [0, 1]])
    W_enc, W_dec = DIFFERENCE.place_encoder(rows).T.contiguous(), DIFFERENCE.place_decoder(rows)
    return Crosscoder(W_enc, torch.zeros(3), W_dec, torch.zeros(4), (2, 2), "hand", streams=DIFFERENCE)


def test_a_dictionary_of_differences_adds_the_difference_to_base_and_takes_it_from_chat():
    every = (0, 1, 2)
    apart = torch.tensor([[1.0, 4.0], [-4.0, -2.0]])
    written = apart.clone()
    written[1, 1] = 0  # no latent reads a negative second axis
    assert delta(BASE, do(Action.TRANSPLANT, *every), of=differences()) == written.tolist()
    assert delta(CHAT, do(Action.TRANSPLANT, *every), of=differences()) == (-written).tolist()
    assert delta(CHAT, do(Action.ABLATE, *every), of=differences()) == (-written).tolist()
    assert delta(BASE, do(Action.ABLATE, 0, row=DIFF), of=differences())[0] == [-1, 0]
    with pytest.raises(InterventionError, match="its rows of the base model are zero; change the base model along the"):
        delta(BASE, do(Action.ABLATE, 0), of=differences())
    with pytest.raises(InterventionError, match="rows of the base model are zero; change the chat model along its own"):
        delta(CHAT, do(Action.ABLATE, 0, row=OTHER), of=differences())


def test_a_dictionary_of_one_model_has_nothing_to_exchange():
    chat = replace(crosscoder(), streams=STREAMS["chat"])
    assert delta(CHAT, do(Action.ABLATE, 1), of=chat) == [[-4, -4], [0, 0]]
    assert delta(BASE, do(Action.ABLATE, 1, row=OTHER), of=chat) == [[-4, -4], [0, 0]]
    for each in (do(Action.TRANSPLANT, 1), do(Action.ABLATE, 1, row=DIFF)):
        with pytest.raises(InterventionError, match="reads chat alone, so it has no rows of two models"):
            delta(BASE, each, of=chat)


@pytest.mark.parametrize(
    ("interventions", "message"),
    [
        ([do(Action.ADD, 0, amount=math.nan)], "amount nan must be a number from -1000 to 1000"),
        ([do(Action.ADD, 0, amount=math.inf)], "amount inf"),
        ([do(Action.SCALE, 0, amount=1000.5)], "amount 1000.5"),
        ([do(Action.ABLATE, 3)], "no latent 3; this crosscoder has 3"),
        ([do(Action.ABLATE, -1)], "no latent -1"),
        ([do(Action.ABLATE)], "every other action takes at least one"),
        ([do(Action.SWAP_STREAM, 1)], "takes no latents"),
        ([do(Action.ADD, 1, amount=1.0)], "latent 1 never fired in the analysis"),
        ([do(Action.SET, 1, amount=0.5)], "latent 1 never fired in the analysis"),
        ([do(Action.ABLATE, 0, 2), do(Action.SCALE, 0, amount=2.0)], "two interventions change .* of latent 0"),
        ([do(Action.ABLATE, 0, reach=Reach.PROMPT), do(Action.SET, 0)], "latent 0"),
    ],
)
def test_what_cannot_be_done_is_refused(interventions: list[Intervention], message: str):
    with pytest.raises(InterventionError, match=message):
        Steering(crosscoder(), MAXIMA, CHAT, interventions)


def test_one_latent_may_be_exchanged_in_the_prompt_and_again_in_the_answer():
    both = [do(Action.ABLATE, 0, reach=Reach.PROMPT), do(Action.SCALE, 0, amount=2.0, reach=Reach.GENERATED)]
    found = Steering(crosscoder(), MAXIMA, CHAT, both).change(X[:1].expand(4, -1), WHERE)
    assert found.delta.tolist() == [[0, 0], [0, -12], [0, -12], [0, 12]]


def test_nothing_crosses_between_streams_of_different_width():
    W_dec = torch.ones(3, 5)
    wide = Crosscoder(W_dec.T.clone(), torch.zeros(3), W_dec, torch.zeros(5), (2, 3), "hand")
    x = torch.ones(1, 5)
    assert delta(CHAT, do(Action.ABLATE, 0), of=wide, x=x) == [[-5, -5, -5]]
    for each in (do(Action.TRANSPLANT, 0), do(Action.SWAP_STREAM), do(Action.ABLATE, 0, row=OTHER)):
        with pytest.raises(InterventionError, match=r"widths 2 \(base\) and 3 \(chat\), so nothing of one fits"):
            delta(CHAT, each, of=wide, x=x)
