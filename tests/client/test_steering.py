"""Changes of latents and arms: what they say on the wire and in words, and what is refused before anything is sent."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope import Arm, InvalidInput, Steer, TokenRole
from crosscope._arms import arms_of
from crosscope._steering import ACTIONS, steers
from crosscope_proto.v1 import effects_pb2 as pb


def test_a_change_on_the_wire() -> None:
    assert Steer(latent=7, add=4.0).message() == pb.Intervention(latents=[7], action=pb.ACTION_ADD, amount=4.0)
    everything = Steer(
        latents=[7, 12],
        set=0.5,
        row="difference",
        reach="generated",
        roles=["user", TokenRole.ASSISTANT],
        positions=[3, 8],
        include_left_out=True,
    )
    assert everything.message() == pb.Intervention(
        latents=[7, 12],
        action=pb.ACTION_SET,
        amount=0.5,
        row=pb.DECODER_ROW_DIFFERENCE,
        reach=pb.REACH_GENERATED,
        roles=[TokenRole.USER.value, TokenRole.ASSISTANT.value],  # pyright: ignore[reportArgumentType]
        positions=[3, 8],
        include_left_out=True,
    )
    assert Steer(latent=1, scale=0).message().action == pb.ACTION_SCALE, "0 is an amount"
    assert Steer(swap_stream=True).message() == pb.Intervention(action=pb.ACTION_SWAP_STREAM)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"latent": 7}, "exactly one of add, scale, set, ablate, transplant, swap_stream, but has none"),
        ({"latent": 7, "add": 1, "ablate": True}, "but has add and ablate"),
        ({"latent": 7, "add": float("nan")}, "add: a finite number is needed"),
        ({"latent": 7, "scale": float("inf")}, "scale: a finite number"),
        ({"latent": 7, "set": "much"}, "set: a number is needed"),
        ({"latent": 7, "ablate": 1}, "ablate: must be True or False"),
        ({"add": 1}, "add needs a latent"),
        ({"latent": -1, "add": 1}, "latents: must be 0 to"),
        ({"latent": 7, "latents": [8], "add": 1}, "one of the two"),
        ({"latents": [8, 8], "add": 1}, "latent 8 is named twice"),
        ({"latents": "8", "add": 1}, "latents: a list is needed"),
        ({"latent": 7, "swap_stream": True}, "leave latents out"),
        ({"latent": 7, "transplant": True, "row": "other"}, "writes the other model's row already"),
        ({"latent": 7, "add": 1, "row": "mine"}, "row: must be one of 'own', 'other', 'difference'"),
        ({"latent": 7, "add": 1, "reach": "answer"}, "reach: must be one of 'all', 'prompt', 'generated'"),
        ({"latent": 7, "add": 1, "roles": ["human"]}, "'human' is no role; use text, bos"),
        ({"latent": 7, "add": 1, "positions": [-1]}, "positions: must be 0 to"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Steer(**fields)


@pytest.mark.parametrize(
    ("words", "steer"),
    [
        ("7 add 4", Steer(latent=7, add=4)),
        ("7 add -0.5", Steer(latent=7, add=-0.5)),
        ("7, 12 ablate generated", Steer(latents=[7, 12], ablate=True, reach="generated")),
        ("3:6 scale 2 user,assistant", Steer(latents=[3, 4, 5], scale=2, roles=["user", "assistant"])),
        (
            "7 set 1 @3,8:10 difference prompt",
            Steer(latent=7, set=1, positions=[3, 8, 9], row="difference", reach="prompt"),
        ),
        ("swap_stream include_left_out", Steer(swap_stream=True, include_left_out=True)),
    ],
)
def test_words(words: str, steer: Steer) -> None:
    assert Steer.parse(words) == steer
    assert Steer.parse(str(steer)) == steer


@settings(max_examples=50)
@given(
    action=st.sampled_from(sorted(ACTIONS)),
    amount=st.floats(-1000, 1000),
    latents=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5, unique=True),
    row=st.sampled_from(["own", "other", "difference"]),
    reach=st.sampled_from(["all", "prompt", "generated"]),
    roles=st.lists(st.sampled_from(TokenRole), max_size=3, unique=True),
    positions=st.lists(st.integers(0, 5000), max_size=5),
    include_left_out=st.booleans(),
)
def test_words_say_everything(action: str, amount: float, latents: list[int], row: str, **where: Any) -> None:
    fields = where | {action: amount if action in ("add", "scale", "set") else True}
    if action != "swap_stream":
        fields["latents"] = latents
    if action not in ("transplant", "swap_stream"):
        fields["row"] = row
    steer = Steer(**fields)
    assert Steer.parse(str(steer)) == steer


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "where one of add, scale"),
        ("7", "where one of add, scale"),
        ("7 raise 4", "'raise' where one of add"),
        ("seven add 4", "'seven' where one of add"),
        ("7 add", 'add needs an amount, for instance "7 add 4"'),
        ("7 add much", "add: a number is needed"),
        ("7 add 4 everywhere", "'everywhere' is none of a row"),
        ("7 add 4 prompt generated", "says reach twice"),
        ("9:3 ablate", "'9:3' is 0 numbers"),
        ("0:100000 ablate", "a range has 1 to 4096"),
    ],
)
def test_words_that_say_nothing_are_refused(words: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Steer.parse(words)


def test_changes_may_be_one_or_many_and_words() -> None:
    one = Steer(latent=7, add=4)
    assert steers(one) == steers([one]) == steers("7 add 4") == (one,)
    with pytest.raises(InvalidInput, match="a Steer is needed, but 7 was given"):
        steers([7])
    with pytest.raises(InvalidInput, match="a list is needed, but 7 was given"):
        steers(7)


SETTINGS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": None,
    "seed": 3,
    "max_new_tokens": 10,
    "stop": "\n",
    "num_samples": 2,
}


def test_an_arm_takes_from_the_call_what_it_does_not_say() -> None:
    arm = Arm(model="base", steer=Steer(latent=7, add=4), temperature=0, top_p=0.9, stop=["a", "b"])
    assert arm.name == "base, 7 add 4"
    assert arm.message(SETTINGS) == pb.Arm(
        model=pb.MODEL_BASE,
        interventions=[pb.Intervention(latents=[7], action=pb.ACTION_ADD, amount=4)],
        sampling=pb.Sampling(temperature=0, top_p=0.9, seed=3, max_new_tokens=10, stop=["a", "b"], num_samples=2),
    )
    plain = pb.Sampling(temperature=0.5, seed=3, max_new_tokens=10, stop=["\n"], num_samples=2)
    assert Arm().message(SETTINGS) == pb.Arm(model=pb.MODEL_CHAT, sampling=plain)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"temperature": float("nan")}, "temperature: a finite number"),
        ({"top_p": "most"}, "top_p: a number"),
        ({"seed": -1}, "seed: must be 0 to 2"),
        ({"seed": 2**64}, "seed: must be 0 to 2"),
        ({"max_new_tokens": 0}, "max_new_tokens: must be 1 to"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
        ({"stop": 3}, "stop: a list is needed"),
        ({"num_samples": 0}, "num_samples: must be 1 to"),
    ],
)
def test_settings_that_cannot_be_sent(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Arm().message(SETTINGS | setting)


def test_arms_of_a_call() -> None:
    steer = Steer(latent=7, add=4)
    assert arms_of(None, "base", steer) == (Arm(model="base", steer=steer),)
    given_arms = [Arm(model="base"), Arm()]
    assert arms_of(given_arms, "chat", ()) == tuple(given_arms)
    for arms, model, also, says in (
        ([], "chat", (), "at least one Arm"),
        (["chat"], "chat", (), "an Arm is needed, but 'chat'"),
        ([Arm()], "base", (), "an arm has its own model and steer"),
        ([Arm()], "chat", steer, "an arm has its own model and steer"),
        (None, "both", (), "model: must be one of 'base', 'chat'"),
    ):
        with pytest.raises(InvalidInput, match=says):
            arms_of(arms, model, also)  # pyright: ignore[reportArgumentType]
