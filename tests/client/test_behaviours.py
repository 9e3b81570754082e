"""Behaviour rates: which answers count, Wilson's interval, how latents and their control are chosen."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from crosscope import Arm, AsyncClient, Client, InvalidInput, Probe, Rate, Steer
from crosscope._behaviours import halves, nearest_at_random
from crosscope.cli import run
from crosscope_proto.v1 import effects_pb2

from .conftest import Served
from .scripted_effects import NamedLatents, ScriptedEffects


@pytest.fixture
def effects() -> ScriptedEffects:
    return ScriptedEffects()


@pytest.fixture
def address(serve: Callable[..., Served], effects: ScriptedEffects) -> str:
    return serve(NamedLatents(), effects).address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_s=20) as client:
        yield client


def probe(request: str, behaviour: str = "denial", pattern: str = "^no$") -> Probe:
    return Probe(behaviour, [{"role": "user", "content": request}], pattern)


def test_answers_in_which_the_pattern_is_found_count(client: Client) -> None:
    """The scripted base model says "yes", and chat "no"."""
    asked = [probe("a"), probe("b"), probe("a"), probe("c", "assent", "es")]
    found = client.crosscoder("demo").behaviour_rates(asked)
    assert found.rates == {
        "denial": {"chat": Rate(2, 2), "base": Rate(0, 2)},
        "assent": {"chat": Rate(0, 1), "base": Rate(1, 1)},
    }
    assert found.all == {"chat": Rate(2, 3), "base": Rate(1, 3)}
    assert (found.version_id, found.num_cut) == ("v1", 0)
    assert "denial     2  100% (34% to 100%)" in str(found)
    assert found.to_pandas().shape == (4, 7)


def test_arms_may_differ_by_behaviour_and_equal_arms_stay_apart(client: Client, effects: ScriptedEffects) -> None:
    chat = Arm(model="chat")
    arms = {"one": chat, "same": chat, "own": {"denial": Arm(model="base", steer=Steer(latent=7, ablate=True))}}
    found = client.crosscoder("demo").behaviour_rates([probe("a")], arms)
    assert found.rates == {"denial": {"one": Rate(1, 1), "same": Rate(1, 1), "own": Rate(0, 1)}}
    assert [list(arm.interventions[0].latents) for arm in effects.last.arms if arm.interventions] == [[7]]
    assert all(arm.sampling.temperature == 0 for arm in effects.last.arms)


def test_wilsons_interval_by_hand() -> None:
    """For 5 of 10 it is symmetric about a half, and z²/(n + z²) = .2775; for 0 of 10 it ends there."""
    low, high = Rate(5, 10).interval
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert Rate(0, 10).interval == (0.0, pytest.approx(0.2775, abs=1e-4))


def test_latents_are_chosen_by_what_they_do_on_other_requests(client: Client, effects: ScriptedEffects) -> None:
    """The scripted shares are, out of chat and into base: 0 and .875 of latent 9, .75 and -.125 of latent 7, -.25 and
    .25 of latent 8, 0 and -.25 of latent 5. Their means count."""
    asked = [probe(letter) for letter in "abcd"]
    found = client.crosscoder("demo").behaviour_effects(asked, num_latents=3)
    chosen = found.chosen["denial"]
    assert (chosen.latents, chosen.effects, chosen.num_requests) == ((9, 7), (0.4375, 0.3125), 2)
    assert set(chosen.control) < {3, 5, 8}
    assert len(chosen.control) == 2
    assert {arm: rate.num for arm, rate in found.rates["denial"].items()} == dict.fromkeys(found.arms, 2)
    steered = [list(arm.interventions) for arm in effects.last.arms]
    assert [len(each) for each in steered] == [0, 0, 1, 1, 1, 1]
    assert [each[0].action for each in steered[2:]] == [
        effects_pb2.ACTION_ABLATE,
        effects_pb2.ACTION_TRANSPLANT,
        effects_pb2.ACTION_ABLATE,
        effects_pb2.ACTION_SWAP_STREAM,
    ]
    assert "chosen by their effect on 2 other requests" in str(found)


def test_no_request_is_on_both_sides() -> None:
    chosen_on, scored = halves([probe(letter) for letter in "abcabcde"])
    assert [each.messages[0]["content"] for each in scored] == ["a", "c", "e"]
    assert [each.messages[0]["content"] for each in chosen_on] == ["b", "d"]
    with pytest.raises(InvalidInput, match="'denial' has one request"):
        halves([probe("a"), probe("a")])


def test_the_control_is_about_as_strong() -> None:
    strengths = {latent: float(latent) for latent in range(100)}
    for seed in range(20):
        found = nearest_at_random([10.0, 10.0, 90.0], strengths, Random(seed))
        assert len(set(found)) == 3
        assert max(abs(latent - wanted) for latent, wanted in zip(found, (10, 10, 90), strict=True)) <= 3
    assert len(nearest_at_random([1.0, 2.0], {5: 1.0}, Random(0))) == 1


def test_probes_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    row: dict[str, Any] = {"behaviour": "denial", "messages": [{"role": "user", "content": "a"}], "pattern": "^no$"}
    path.write_text(json.dumps(row | {"note": "left out"}) + "\n\n")
    assert Probe.read(path) == [probe("a")]
    for wrong, says in (
        (json.dumps(row | {"pattern": "("}), "line 2: pattern: '\\(' is no regular expression"),
        (json.dumps({"behaviour": "x"}), "line 2: has no 'messages'"),
        ("[1]", "line 2: .*; a line is an object with behaviour, messages, pattern"),
        ("{", "line 2: "),
    ):
        path.write_text(json.dumps(row) + "\n" + wrong)
        with pytest.raises(InvalidInput, match=says):
            Probe.read(path)


def test_bad_input_says_what_is_wrong(client: Client) -> None:
    demo = client.crosscoder("demo")
    for probes, arms, says in (
        ([], None, "probes: is empty"),
        ([probe("a")], {}, "arms: is empty"),
        ([probe("a")], {"x": {"assent": Arm()}}, "'x' has no Arm for the behaviour 'denial'"),
        ([probe("a")], {"x": Arm(num_samples=2)}, "'x' has 2 samples"),
        (["a"], None, "a Probe is needed, but 'a' was given"),
    ):
        with pytest.raises(InvalidInput, match=says):
            demo.behaviour_rates(probes, arms)  # pyright: ignore[reportArgumentType]


def test_the_asynchronous_client_does_the_same(address: str) -> None:
    async def ask():
        async with AsyncClient(address, timeout_s=20) as client:
            demo = await client.crosscoder("demo")
            return await demo.behaviour_effects([probe("a"), probe("b")], num_latents=1)

    assert asyncio.run(ask()).rates["denial"]["base"] == Rate(0, 1)


def test_the_command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CROSSCOPE_ADDRESS", address)
    path = tmp_path / "probes.jsonl"
    rows = [{"behaviour": "denial", "messages": [{"role": "user", "content": c}], "pattern": "no"} for c in "ab"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def cli(*words: str) -> tuple[int, str, str]:
        code = run(["rates", "demo", str(path), *words])
        out, err = capsys.readouterr()
        return code, out, err

    code, out, _ = cli("--arm", "without=chat:7 ablate; 8 add 2", "--arm", "plain=base", "--json")
    document = json.loads(out)
    assert code == 0
    assert [(row["arm"], row["num_shown"], row["num"]) for row in document["rates"]] == [
        ("without", 2, 2),
        ("plain", 0, 2),
    ]
    code, out, _ = cli("--choose", "1")
    assert code == 0
    assert "base with chat's stream" in out
    for words, says in (
        (("--arm", "chat"), "has no name; write NAME=MODEL"),
        (("--arm", "x=gpt"), "must be one of 'base', 'chat'"),
        (("--arm", "x=chat", "--choose", "1"), "--choose has arms of its own"),
    ):
        code, _, err = cli(*words)
        assert code == 2
        assert says in err
