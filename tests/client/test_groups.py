"""Groups of latents that one model alone has, and matches of two crosscoders: by hand, and through the real server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fixtures_snippets import run_snippet

from crosscope import Client, InvalidInput
from crosscope._groups import grouped
from crosscope.cli import run
from crosscope_proto import artefacts as layout
from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from tests.client.conftest import running_server
from tests.fixtures_artefacts import write_crosscoder, write_rows

IDS = np.arange(40)
SPECIFIC = [3, 5, 7, 20, 21, 30]
TOGETHER = {20: [(7, 0.2)], 21: [(20, 0.15), (8, 0.9)], 30: [(21, 0.05)], 5: [(3, 0.5)]}
"""Latents 2 and 3, 4 and 5, 6 and 7 are the detectors of three behaviours in the fixture."""


def test_pairs_above_the_limit_are_joined_and_two_behaviours_never() -> None:
    detectors = {"asks-back": [2, 3], "closing-wish": [4, 5], "refuses": [6, 7]}
    # 3 and 5 fire together, and detect different behaviours. 8 is not among the latents, so it joins nothing.
    assert grouped(SPECIFIC, TOGETHER, detectors) == [
        ("asks-back", (3,)),
        ("closing-wish", (5,)),
        ("refuses", (7, 20, 21)),
        ("", (30,)),
    ]
    assert grouped(SPECIFIC, TOGETHER, {}, min_index=0.05) == [("", (3, 5)), ("", (7, 20, 21, 30))]
    assert grouped(SPECIFIC, TOGETHER, {}, min_index=0.16) == [("", (3, 5)), ("", (7, 20)), ("", (21,)), ("", (30,))]
    assert grouped([], TOGETHER, detectors) == []


def test_a_detector_joins_latents_without_being_one_of_them() -> None:
    together = {1: [(50, 0.3)], 2: [(51, 0.1)], 3: [(52, 0.3)]}
    detectors = {"refusal": [50, 51], "thanks": [51, 52]}
    assert grouped([1, 2, 3], together, detectors) == [("refusal", (1, 2)), ("thanks", (3,))]
    assert grouped([1, 2, 3], together, {}) == [("", (1,)), ("", (2,)), ("", (3,))]


def test_the_strongest_pair_decides_which_behaviour_a_latent_joins() -> None:
    detectors = {"a": [10], "b": [11]}
    assert grouped([1], {1: [(10, 0.2), (11, 0.3)]}, detectors) == [("b", (1,))]
    assert grouped([1], {1: [(10, 0.3), (11, 0.3)]}, detectors) == [("a", (1,))]  # equal ones by id


def test_the_order_in_which_pairs_are_listed_changes_nothing() -> None:
    backward = {latent: pairs[::-1] for latent, pairs in reversed(TOGETHER.items())}
    assert grouped(SPECIFIC, backward, {}) == grouped(SPECIFIC, TOGETHER, {})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("groups")
    plant(home)
    with running_server(home) as address, Client(address) as found:
        yield found


def plant(home: Path) -> None:
    """A crosscoder in which base lacks SPECIFIC, with TOGETHER; 5 has a doubt. Another in which it lacks nothing."""
    specific = np.isin(IDS, SPECIFIC)
    columns = {name: np.where(specific, 0.05, 0.9) for name in ("nu_err", "nu_rec")}
    columns |= {f"mirror_{name}": np.full(40, 0.9) for name in ("nu_err", "nu_rec")}
    columns |= {f"{name}_se": np.full(40, 0.01) for name in tuple(columns)}
    columns |= {column.name: np.full(40, np.nan) for column in CAUSAL_COLUMNS}
    columns["latent_class"], columns["rel_norm"] = np.full(40, "other"), np.full(40, 0.7)
    columns |= {"num_active": np.full(40, 900), "num_texts": 100 + IDS}
    columns |= {"beta_act_no_bias_base": np.where(IDS == 5, 0.4, 0.1), "beta_act_no_bias_chat": np.ones(40)}
    columns["base_uselessness_single"] = np.where(IDS == 21, 9.0, 4.0)
    for effect, value in (("ablation_gap_all", 0.3), ("transplant_gap_all", -0.1)):
        columns[effect] = np.where(IDS == 20, value, np.nan)
        columns[f"{effect}_se"] = np.where(IDS == 20, 0.02, np.nan)
    columns["coactive"] = np.array([[other for other, _ in pairs_of(i)] for i in range(40)])
    columns["coactive_indices"] = np.array([[index for _, index in pairs_of(i)] for i in range(40)], np.float32)
    rows = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    for name, changes, own in (("planted", {}, rows), ("demo-l1", {"nu_err": np.full(40, 0.9)}, rows[::-1] * 2)):
        written = write_crosscoder(home, name, 40, columns=columns | changes)
        folder = Path(layout.version_folder(home, name, written.version_id))
        write_rows(folder, own)


def pairs_of(latent: int) -> list[tuple[int, float]]:
    return [*TOGETHER.get(latent, []), (39, 0.01), (38, 0.01)][:2]


def test_groups_say_what_chat_alone_has(client: Client) -> None:
    groups = client.crosscoder("planted").groups(limit=3)
    # Most supported latents first, then most latents, then most texts; in a group, the highest base uselessness.
    assert [(group.behaviour, group.ids) for group in groups] == [
        ("refuses", (21, 7, 20)),
        ("", (30,)),
        ("asks-back", (3,)),
    ]
    example = groups[1].examples[0]
    assert example.tokens.pieces[example.peak].strip() in groups[1].name
    refuses = groups[0]
    assert (refuses.num_supported, refuses.num_texts) == (3, 121)
    assert refuses.measured is not None
    assert refuses.measured.id == 20
    assert (str(refuses.ablation), refuses.transplant.value) == ("0.3 ± 0.02", pytest.approx(-0.1))
    assert {detector.latent for detector in refuses.detectors} == {6, 7}
    assert refuses.examples[0].max == max(example.max for example in refuses.examples)
    assert (groups.num_specific, groups.num_supported, groups.num_groups, len(groups)) == (6, 5, 4, 3)
    assert groups.remarks == ["1 more group left out by the limit."]
    said = str(groups)
    assert "Of 40 latents, 6 are specific to chat by the measurements" in said
    assert "5 of them have the verdict “supported”" in said
    assert "The largest, refuses, has 3 latents and fires in at least 121 held-out texts." in said
    assert "latent 20 (refuses): without it chat is 0.300 ± 0.020 nats nearer to base" in said


def test_a_group_is_called_what_a_person_called_its_latents(client: Client) -> None:
    planted = client.crosscoder("planted")
    said = planted.annotations
    said.label(20, "says no")
    said.label(30, "what a program says", by_program="a labeller")
    try:
        refuses, other = planted.groups(limit=2)
        assert (refuses.name, refuses.called, refuses.tagged) == ("says no", "says no", "refuses")
        assert other.called == ""
    finally:
        said.label(20, "")


def test_nothing_specific_is_said_so(client: Client) -> None:
    groups = client.crosscoder("demo-l1").groups()
    assert str(groups) == "None of 40 latents is shown to be specific to chat."
    with pytest.raises(InvalidInput, match="no model of the pair"):
        client.crosscoder("demo-l1").groups("both")


def test_the_command_prints_the_same(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    address = client.address
    assert run(["groups", "planted", "--json", "--address", address]) == 0
    found = json.loads(capsys.readouterr().out)
    groups = client.crosscoder("planted").groups()
    assert found["sentences"] == groups.sentences
    assert [each["latents"] for each in found["groups"]] == [list(group.ids) for group in groups]
    assert run(["groups", "planted", "--address", address]) == 0
    assert groups.sentences[0] in capsys.readouterr().out


def test_the_page_of_the_client_runs(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    [block] = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "demo-l1" in each]
    run_snippet(block, {"crosscoder": client.crosscoder("planted")})
    shown = capsys.readouterr().out
    assert "6 are specific to chat" in shown
    assert shown.splitlines()[-1].startswith("(32, ")


def test_matches_of_two_crosscoders(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    planted, same = client.crosscoder("planted"), client.crosscoder("demo-l1")
    found = planted.match(same)  # the same rows in the opposite order, and twice as long
    assert found.first.nearest.tolist() == list(range(39, -1, -1))
    assert found.first.of(7) == (32, pytest.approx(1.0), True)
    assert found.first.of(40) is None
    assert found.second.count().num_matched == 40
    assert found.first.count("specific_to", "chat").num_matched == 6
    assert found.second.count("specific_to", "chat").num == 0
    assert found.first.to_pandas().loc[7, "nearest"] == 32
    assert planted.match("demo-l1").first.nearest.tolist() == found.first.nearest.tolist()
    assert "specific to: chat" in str(found)
    address = ["--address", client.address]
    assert run(["match", "planted", "demo-l1", "--json", "--latents", *address]) == 0
    sides = json.loads(capsys.readouterr().out)["sides"]
    assert sides[0]["nearest"] == found.first.nearest.tolist()
    assert run(["match", "planted", "nothing", *address]) == 1
    assert run(["match", "planted", "demo-l1", "--latents", *address]) == 2
