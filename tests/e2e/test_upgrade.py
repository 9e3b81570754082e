"""Homes that earlier commits made (tests/e2e/homes), restored and opened with the code of today."""

import json
import tarfile
import time
from pathlib import Path

import pytest

from crosscope import Client, JobState
from crosscope_local.backup import back_up, restore
from tests.e2e.conftest import Stack, start_stack, stop_stack, wait_until_prompts_are_served

HOMES = sorted((Path(__file__).parent / "homes").glob("*.tar.xz"))


def test_there_are_homes() -> None:
    assert HOMES


@pytest.mark.parametrize("archive", HOMES, ids=lambda path: path.name)
def test_a_recorded_home_is_restored_opened_and_backed_up_again(archive: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    restore(archive, home)
    stack = start_stack(home)
    try:
        check_what_was_there(stack.client)
        check_a_job(stack)
        copied = back_up(home, tmp_path / "again.tar")  # while everything runs
    finally:
        stop_stack(stack)
    assert copied.gone == []
    again = tmp_path / "again"
    restore(tmp_path / "again.tar", again)
    before, after = names(archive), names(tmp_path / "again.tar")
    assert before - after == set()
    moved = start_stack(again)  # elsewhere: manifests name the folder of the first home
    try:
        check_what_was_there(moved.client)
        assert len(moved.client.jobs.list()) == 3
    finally:
        stop_stack(moved)


def names(archive: Path) -> set[str]:
    """The files of an archive, but for the queue's, whose names count its rewrites."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("crosscope-backup.json")
        assert member is not None
        return {name for name in json.load(member)["files"] if not name.startswith("queue/")}


def check_what_was_there(client: Client) -> None:
    """Pages, words, jobs and prompts of what scripts/record-home makes."""
    tiny = client.crosscoder("tiny")
    assert (tiny.info.num_latents, tiny.info.pair) == (48, "tiny")
    assert len(tiny.latents(limit=100)) == 48
    most = tiny.latents(limit=1, order_by="-num_active")[0]
    examples = tiny.latent(most.id).examples(limit=3)
    assert len(examples) == 3
    assert max(examples[0].activations) == examples[0].max > 0
    label = tiny.annotations.get(3).label
    assert label is not None
    assert (label.text, label.author) == ("recorded here", "ada")
    assert {job.info.name for job in client.jobs.list()} >= {"tiny"}
    assert all(job.info.state is JobState.SUCCEEDED for job in client.jobs.list())
    wait_until_prompts_are_served(client)
    encoding = tiny.encode("The red fox lives in the forest.", top_k=4)
    assert len(encoding) > 5
    assert encoding.activations.size > 0


def check_a_job(stack: Stack) -> None:
    """A recipe of that time still runs, on the pair of that time."""
    recipe = (Path(__file__).parent / "homes/crosscoder.yaml").read_text().replace("name: tiny", "name: anew", 1)
    began = time.monotonic()
    stack.client.jobs.submit(recipe).wait(timeout_s=120)
    assert len(stack.client.crosscoder("anew").latents(limit=100)) == 48, time.monotonic() - began
