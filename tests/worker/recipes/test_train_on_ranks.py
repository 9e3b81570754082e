"""The whole job on two real ranks of gloo: the weights of one, a kill in the middle, and a resume on another number."""

import importlib.util
import json
import os
import random
import re
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_worker.cluster.errors import ClusterError
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.recipes.ranks import num_devices
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.training import TrainingError
from crosscope_worker.work import Cancelled, Workspace, silent

WORDS = ("the", "a", "small", "red", "fox", "cat", "bird", "sees", "likes", "finds", "house", "one", "and", "not")
RECIPE = """
kind: crosscoder
name: toy
pair: {{name: tiny, base: {pair}/base, chat: {pair}/chat}}
layer: 1
data:
  - {{name: web, source: jsonl, path: web.jsonl, text_column: text}}
  - {{name: chat, source: jsonl, path: chat.jsonl, chat_column: turns}}
tokens: {{max_length: 64, held_out_every: 5}}
crosscoder: {{variant: batch_topk, num_latents: 63, k: 4}}
training: {{batch_size: 127, lr: 0.003, warmup_steps: 3, epochs: 2, buffer_tokens: 512, log_every: 5, streams: 2,
            checkpoint_every: 7, dead_after_tokens: 500, devices: {devices}}}
analysis: {{max_tokens: 300, num_shards: 2, top_examples: 1, quantiles: 1, examples_per_quantile: 1, silent_examples: 0,
            uselessness_steps: 1, spliced_tokens: 0}}
"""


@pytest.fixture
def home(tmp_path: Path, tiny_pair_folder: Path) -> Path:
    (tmp_path / "pairs").symlink_to(tiny_pair_folder.parent)
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, 30)))

    documents = [{"text": sentence()} for _ in range(120)]
    chats = [
        {"turns": [{"role": "user", "content": sentence()}, {"role": "assistant", "content": sentence()}]}
        for _ in range(90)
    ]
    for name, rows in (("web", documents), ("chat", chats)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe_on(devices: int | Literal["auto"], pair: Path) -> CrosscoderRecipe:
    recipe = parse_recipe(RECIPE.format(pair=pair, devices=devices))
    assert isinstance(recipe, CrosscoderRecipe)
    return recipe


def workspace(home: Path, job: str) -> Workspace:
    folder = home / "jobs" / job
    folder.mkdir(parents=True, exist_ok=True)
    return Workspace(home=home, folder=folder, fence=lambda: None, data_roots=(home / "pairs",))


def ranks() -> list[int]:
    """Process ids of the ranks below this process, in their order."""
    return sorted(each.pid for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline()))


def assert_same(home: Path, one: CrosscoderManifest, other: CrosscoderManifest) -> None:
    first, second = (load_crosscoder(home / "crosscoders/toy/versions" / each.version_id) for each in (one, other))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(second, name), getattr(first, name), rtol=0, atol=1e-6, msg=name)
    assert other.threshold == pytest.approx(one.threshold, abs=1e-5)
    assert (other.training_tokens, other.texts, other.skipped) == (one.training_tokens, one.texts, one.skipped)
    assert (other.norm_limits, other.norm_left_out) == (one.norm_limits, one.norm_left_out)


def test_a_training_goes_on_on_two_ranks_of_which_one_is_killed(home: Path, tiny_pair_folder: Path) -> None:
    whole = make_crosscoder(recipe_on(1, tiny_pair_folder), workspace(home, "one"), silent)
    told: list[str] = []
    killed: list[int] = []

    def stop(stage: str, *_: Any, step: int = 0, **__: Any) -> None:
        if stage == "train" and step == 10:
            raise Cancelled

    def kill(stage: str, _fraction: float, message: str = "", *, step: int = 0, **_: Any) -> None:
        if stage == "train" and step == 17 and not killed:
            killed.append(ranks()[1])
            os.kill(killed[0], signal.SIGKILL)
        if "(start" in message:
            told.append(message)

    with pytest.raises(Cancelled):
        make_crosscoder(recipe_on(1, tiny_pair_folder), workspace(home, "two"), stop)
    twice = make_crosscoder(recipe_on(2, tiny_pair_folder), workspace(home, "two"), kill)
    assert len(told) == 1
    assert re.fullmatch(r"rank 1 was killed by signal 9; training goes on from step (7|14) \(start 2 of 4\)", told[0])
    assert not ranks()
    assert_same(home, whole, twice)
    speeds = [json.loads(line)["num_devices"] for line in (home / "speeds.jsonl").read_text().splitlines()]
    assert speeds == [1, 2]
    files = {path.name for path in (home / "jobs/two/checkpoints").glob("step-*/*")}
    assert files == {"state.json", "shared.safetensors", "latents-0-32.safetensors", "latents-32-63.safetensors",
                     *(f"stream-{i}.{kind}" for i in range(2) for kind in ("json", "safetensors"))}  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "device", "there", "taken"),
    [(1, "cuda", 4, 1), (4, "cuda", 4, 4), ("auto", "cuda", 4, 4), ("auto", "cuda:1", 1, 1), ("auto", "cpu", 1, 1)],
)
def test_the_number_of_devices(
    tiny_pair_folder: Path, wanted: int | Literal["auto"], device: str, there: int, taken: int
) -> None:
    assert num_devices(recipe_on(wanted, tiny_pair_folder), device, there) == taken


def test_more_devices_than_there_are_end_a_job_before_anything_is_loaded(home: Path, tiny_pair_folder: Path) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something is loaded")

    with pytest.raises(TrainingError, match=r"training\.devices is 17, but .* which at most 16 ranks share"):
        make_crosscoder(recipe_on(17, tiny_pair_folder), workspace(home, "job"), never)
    with pytest.raises(TrainingError, match=r"training\.devices is 3, but .* has 2 \(cuda\); lower it to 2"):
        num_devices(recipe_on(3, tiny_pair_folder), "cuda", 2)
    with pytest.raises(ClusterError, match="is 'auto', which is not host:port"):
        make_crosscoder(recipe_on(2, tiny_pair_folder), replace(workspace(home, "j"), ray_address="auto"), never)


def test_a_cluster_without_the_package_for_it_is_a_sentence(
    home: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "ray" else really(name, *more))
    with socket.create_server(("127.0.0.1", 0)) as answers:
        there = replace(workspace(home, "job"), ray_address=f"127.0.0.1:{answers.getsockname()[1]}")
        with pytest.raises(ClusterError, match=r"Ray is not installed here; install crosscope-worker\[ray\]"):
            make_crosscoder(recipe_on(2, tiny_pair_folder), there, silent)
