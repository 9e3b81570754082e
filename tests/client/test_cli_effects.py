"""`crosscope compare`, `generate`, `steer`, `attribute`, `explain` and `contrast`, as processes and in-process."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_waiting import PATIENCE_S

from crosscope import Client
from crosscope.cli import run
from crosscope_proto.v1 import effects_pb2

from .conftest import Served
from .scripted_effects import ANSWERS, NamedLatents, ScriptedEffects
from .test_cli import in_terminal


@pytest.fixture
def effects() -> ScriptedEffects:
    return ScriptedEffects()


@pytest.fixture
def address(serve: Callable[..., Served], effects: ScriptedEffects) -> Iterator[str]:
    address = serve(NamedLatents(), effects).address
    with Client(address):
        yield address


@pytest.fixture
def cli(address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command against the scripted server: (exit code, stdout, stderr)."""
    monkeypatch.setenv("CROSSCOPE_ADDRESS", address)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_compare(cli: Any, effects: ScriptedEffects) -> None:
    code, out, _ = cli("compare", "demo", "abcd", "--most-different", "2")
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [["4", "d", "text", "2"], ["3", "c", "text", "1.5"]]
    document = json.loads(cli("compare", "--pair", "demo", "ab", "--next", "1", "--json")[1])
    assert (effects.last.pair, effects.last.crosscoder, effects.last.top_n) == ("demo", "", 1)
    assert document["kl_chat_base"] == [0, 0.5, 1]
    assert document["chat"]["log_probabilities"] == [0, -1, None]
    assert cli("compare", "--pair", "demo", "--message", "user:hi")[0] == 0
    assert effects.last.prompt.conversation.turns[0].content == "hi"


def test_generate(cli: Any, effects: ScriptedEffects) -> None:
    assert cli("generate", "demo", "abc") == (0, "no\n", "chat: 2 tokens; the model ended its turn.\n")
    code, out, _ = cli("generate", "demo", "abc", "--model", "both", "--steer", "7 add 4", "--seed", "3", "--stop", "x")
    assert (code, out) == (0, "── base, 7 add 4 ──\nyes\n── chat, 7 add 4 ──\nno\n")
    assert [list(arm.interventions[0].latents) for arm in effects.last.arms] == [[7], [7]]
    sampling = effects.last.arms[1].sampling
    assert (sampling.seed, list(sampling.stop), sampling.max_new_tokens, sampling.temperature) == (3, ["x"], 128, 0)
    assert cli("generate", "--pair", "demo", "--message", "user:hi", "--temperature", "0.5", "--top-p", "0.9")[0] == 0
    assert (effects.last.pair, effects.last.prompt.conversation.add_generation_prompt) == ("demo", True)
    assert (effects.last.arms[0].sampling.temperature, effects.last.arms[0].sampling.top_p) == (0.5, 0.9)
    assert cli("generate", "demo", "--message", "user:hi", "--no-generation-prompt")[0] == 0
    assert not effects.last.prompt.conversation.add_generation_prompt


def test_generate_as_lines_of_json(cli: Any) -> None:
    said = cli("generate", "demo", "abc", "--model", "base", "--code", "--json")[1]
    lines = [json.loads(line) for line in said.splitlines()]
    assert [next(iter(line)) for line in lines] == ["prompt", "token", "token", "token", "answer"]
    assert (lines[0]["arms"], lines[0]["version_id"]) == (["base"], "v1")
    assert [(line["token"]["piece"], line["token"]["latents"]) for line in lines[1:4]] == [
        *(("y", [9, 3]), ("e", [9, 3]), ("s", [])),
    ]
    assert [line["token"]["left_out"] for line in lines[1:4]] == ["kept", "norm", None]
    answer = lines[4]["answer"]
    assert (answer["text"], answer["reason"], len(answer["code"]["row_starts"])) == ("yes", "turn_end", 8)
    assert answer["arm"] == {"name": "base", "model": "base", "steer": []}


def test_steer(cli: Any, effects: ScriptedEffects) -> None:
    more = ("--steer", "12,13 ablate generated", "--samples", "2")
    code, out, err = cli("steer", "demo", "abc", "--latent", "7", "--add", "4", *more)
    assert code == 0
    changed = "── chat, 12,13 ablate generated; 7 add 4"
    assert out == f"── chat ──\nno\n── chat, sample 1 ──\nno\n{changed} ──\nno\n{changed}, sample 1 ──\nno\n"
    assert "Changed at 4 tokens. Left alone at 1 that training left out" in err
    assert [len(arm.interventions) for arm in effects.last.arms] == [0, 2]
    assert cli("steer", "demo", "abc", "--latent", "7", "--latent", "8", "--set", "0", "--model", "both")[0] == 0
    assert [arm.model for arm in effects.last.arms] == [1, 1, 2, 2]
    zero = effects_pb2.Intervention(latents=[7, 8], action=effects_pb2.ACTION_SET)
    assert effects.last.arms[1].interventions[0] == zero


def test_attribute_and_explain(cli: Any, effects: ScriptedEffects) -> None:
    code, out, err = cli("attribute", "demo", "abcd", "--at", "-1", "--at", "0", "--exact", "2")
    assert code == 0
    assert (list(effects.last.tokens), effects.last.num_exact) == ([4, 0], 2)
    assert out.splitlines()[2].split()[:4] == ["7", "carries", "1.5", "75%"]
    assert out.splitlines()[3].split()[:4] == ["8", "works", "against", "−0.5"]
    assert "The whole streams of base at this layer, put into chat, carry 90%." in err
    assert json.loads(cli("attribute", "demo", "ab", "--first", "a", "--second", "b", "--json")[1])["value"] == 2
    code, out, err = cli("explain", "demo", "abcd", "--num-tokens", "1", "--limit", "2")
    assert [line.split() for line in out.splitlines()] == [
        ["token", "piece", "KL", "latent", "into", "base", "out", "of", "chat", "peaks"],
        ["4", "d", "2", "9", "88%", "–", "▁cannot", "<i>9</i>"],
        ["4", "d", "2", "7", "−12%", "75%", "▁cannot", "<i>7</i>"],
    ]
    assert "do not add up" in err
    document = json.loads(cli("explain", "demo", "abcd", "--num-tokens", "1", "--json")[1])
    first, second = document["rows"][:2]
    assert first["sentence"].startswith('At "d"')
    assert (first["transplant"]["share"], first["ablation"]) == (0.875, None)
    assert (second["transplant"]["share"], second["ablation"]["share"]) == (-0.125, 0.75)
    assert [document["attributions"][0][side]["model"] for side in ("transplant", "ablation")] == ["base", "chat"]
    code, _, err = cli("explain", "demo", "alone", "--num-tokens", "1")
    assert code == 0
    assert "Nothing was put into base: this crosscoder reads chat alone" in err


def test_contrast(cli: Any, effects: ScriptedEffects, tmp_path: Path) -> None:
    (tmp_path / "first.txt").write_text("one\n\ntwo\n")
    lines = ['"three"', '[{"role": "user", "content": "four"}]', '{"stored_text": 5, "tag": "x"}']
    (tmp_path / "second.jsonl").write_text("\n".join(lines))
    files = (str(tmp_path / "first.txt"), str(tmp_path / "second.jsonl"))
    code, out, err = cli("contrast", "demo", *files, "--limit", "3", "--generation-prompt")
    assert code == 0
    assert [prompt.text for prompt in effects.last.first] == ["one", "two"]
    assert effects.last.second[0].text == "three"
    assert effects.last.second[1].conversation.add_generation_prompt
    assert effects.last.second[2].stored_text.sequence_id == 5
    assert "1 empty line passed over" in err
    assert "decision: held-out AUC 0.9 ± 0.05" in out
    assert json.loads(cli("contrast", "demo", *files, "--json")[1])["places"][0]["entries"][0]["latent"] == 7
    for text, says in (
        ("{no", "line 1 is no JSON"),
        ('{"tag": 1}', "needs one of text, messages, stored_text, token_ids, but has 'tag'"),
        ("7", r"second[0]: messages: a list of"),
    ):
        (tmp_path / "second.jsonl").write_text(text)
        code, out, err = cli("contrast", "demo", *files)
        assert (code, out) == (2, "")
        assert says in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("compare",), 2, "give CROSSCODER, or --pair NAME"),
        (("compare", "demo"), 2, "give TEXT"),
        (("compare", "demo", "a", "--pair", "p"), 2, "one of the two"),
        (("compare", "a", "--pair", "p", "--version", "v1"), 2, "a pair has none"),
        (("compare", "a", "--pair", "nowhere"), 1, "there is no pair 'nowhere'"),
        (("generate", "demo", "a", "--steer", "7 raise 4"), 2, "'raise' where one of add"),
        (("generate", "demo", "a", "--temperature", "nan"), 2, "temperature: a finite number"),
        (("generate", "demo", "fail"), 1, "error: the worker died"),
        (("steer", "demo", "a"), 2, 'give --latent 7 --add 4, or --steer "7 add 4"'),
        (("steer", "demo", "a", "--latent", "7"), 2, "exactly one of add"),
        (("steer", "demo", "a", "--add", "7"), 2, "add needs a latent"),
        (("attribute", "demo", "a", "--first", "b"), 2, "first and second go together"),
        (("contrast", "demo", "nowhere.txt", "nowhere.txt"), 2, "does not exist"),
    ],
)
def test_errors_are_sentences(cli: Any, arguments: tuple[str, ...], code: int, says: str) -> None:
    got, _, err = cli(*arguments)
    assert got == code
    assert says in err


def test_help_says_how_a_change_is_written(cli: Any) -> None:
    for name in ("compare", "generate", "steer", "attribute", "explain", "contrast"):
        code, out, _ = cli(name, "--help")
        assert (code, out.startswith(f"Usage: crosscope {name}")) == (0, True)
    assert "7,12 ablate generated" in cli("steer", "--help")[1]


def test_colours_on_a_terminal_alone(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ANSWERS, effects_pb2.MODEL_CHAT, ["\x1b[2J", "o\n", "k"])
    code, written = in_terminal(address, 100, "generate", "demo", "abc", "--code")
    assert code == 0
    assert re.search(rb"\x1b\[1;[\d;]+m\\u001b\[2J", written), "control characters of a model never reach the terminal"
    plain = in_terminal(address, 100, "compare", "demo", "abcd", NO_COLOR="1")[1].split(b"\n")[0]
    assert not re.search(rb"\x1b\[[\d;]*3[0-8]", plain)
    assert plain.startswith(b"<bos>ab\x1b[1mc"), "bold is no colour"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_ctrl_c_says_what_has_come(address: str, effects: ScriptedEffects, form: list[str]) -> None:
    command = [sys.executable, "-c", "from crosscope.cli import main; main()", "generate", "demo", "wait", *form]
    environment = {**os.environ, "CROSSCOPE_ADDRESS": address}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert running.stdout is not None
    wanted = b'"token"' if form else b"n"
    seen = b""
    while wanted not in seen:
        seen += running.stdout.read1()  # pyright: ignore[reportAttributeAccessIssue]
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert err.decode().strip() == "Stopped. Received: 1 token of chat."
    assert effects.left.wait(PATIENCE_S)
    if form:
        assert json.loads(out.splitlines()[-1])["answer"]["reason"] == "cancelled"
