"""The whole pipeline through the public API, with a real Redis and separate processes."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from crosscope import Client, InvalidInput, Job, JobCancelled, JobState, LeftOut, NotFound, TokenRole, Unavailable
from crosscope_worker.dictionary.published.export import export_version

from .conftest import ROOT, Stack, wait_until_prompts_are_served

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "How do I make soup?"}, {"role": "assistant", "content": "Sure! Step one."}]


def test_jobs_ran_in_order_and_said_what_they_did(stack: Stack, made: tuple[Job, Job]):
    pair, crosscoder = made
    assert (pair.state, crosscoder.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert pair.info.ended_at <= crosscoder.info.started_at
    assert set(pair.info.stage_seconds) >= {"world", "base", "chat"}
    assert set(crosscoder.info.stage_seconds) >= {"load", "train", "analyse", "publish"}
    events = list(crosscoder.watch())
    curve = [event.metrics["fve_chat"] for event in events if "fve_chat" in event.metrics]
    assert len(curve) >= 3
    assert curve[-1] > curve[0]
    later = list(crosscoder.watch(after_event=events[3].id))
    assert [event.id for event in later] == [event.id for event in events[4:]]


def test_what_was_made_can_be_browsed(stack: Stack, made: tuple[Job, Job]):
    crosscoder = stack.client.crosscoder("demo")
    assert crosscoder.info.version_id == made[1].info.version_id
    assert [each.name for each in stack.client.crosscoders()] == ["demo"]
    assert sum(crosscoder.info.class_counts.values()) == crosscoder.info.num_latents == 512
    latents = crosscoder.latents(where=["num_active > 20"], order_by="-base_uselessness_single", limit=30)
    scores = [latent.base_uselessness_single for latent in latents]
    assert scores == sorted(scores, reverse=True)
    atlas = crosscoder.atlas(["rel_norm", "num_active"])
    for latent in latents:
        assert latent.rel_norm == pytest.approx(atlas["rel_norm"][latent.id])
        assert latent.num_active == atlas["num_active"][latent.id] > 20
    best = crosscoder.latent(latents[0].id)
    examples = best.examples(limit=5)
    assert examples[0].max == pytest.approx(best.max, rel=2e-3)
    assert max(examples[0].activations) == pytest.approx(best.max, rel=2e-3)
    assert {detector.place for detector in crosscoder.detectors()} == {"decision", "within"}


def test_a_prompt_is_encoded_by_the_worker_and_then_from_the_cache(stack: Stack, made: tuple[Job, Job]):
    crosscoder = stack.client.crosscoder("demo")
    first = crosscoder.encode(messages=MESSAGES)
    answers = iter(lambda: crosscoder.encode(messages=MESSAGES), None)
    second = next(answer for answer in answers if answer.cached)  # it is stored behind the first answer
    assert (first.cached, second.cached) == (False, True)
    assert np.array_equal(first.latents, second.latents)
    assert np.array_equal(first.activations, second.activations)
    assert TokenRole.USER in first.tokens.roles
    assert "soup" in "".join(first.tokens.pieces)
    top = crosscoder.top_latents(messages=MESSAGES, rank="max", limit=5)
    strongest = int(first.latents[first.activations.argmax()])
    assert top[0].latent == strongest
    assert top[0].max == pytest.approx(float(first.activations.max()))


def test_examples_show_what_encoding_the_same_text_gives(stack: Stack, made: tuple[Job, Job]):
    """Offline and online agree: harvest, analysis and store against tokenise, serve and encode."""
    crosscoder = stack.client.crosscoder("demo")
    for latent in crosscoder.latents(where=["num_active > 50", "template_share < 0.1"], order_by="-max", limit=5):
        example = latent.examples(limit=1, dataset="web")
        if not example:
            continue
        text = "".join(example[0].tokens.pieces[1:])
        online = crosscoder.encode(text).latent_values(latent.id)
        offline = np.array(example[0].values())
        if len(online) == len(offline):
            np.testing.assert_allclose(online[1:], offline[1:], rtol=5e-3, atol=5e-3)
            return
    raise AssertionError("no example could be compared")


def test_a_stored_text_has_the_activations_that_the_analysis_saw(stack: Stack, made: tuple[Job, Job]):
    crosscoder = stack.client.crosscoder("demo")
    seen: set[str] = set()
    for latent in crosscoder.latents(where=["num_active > 50"], order_by="-max", limit=8):
        for example in latent.examples(limit=3):
            encoding = crosscoder.encode(stored_text=example.sequence_id)
            assert encoding.tokens.ids == example.tokens.ids
            assert encoding.tokens.roles == example.tokens.roles
            assert encoding.tokens.pieces == example.tokens.pieces
            kept = np.array([reason == LeftOut.KEPT for reason in encoding.tokens.left_out])
            online = np.where(kept, encoding.latent_values(latent.id), 0)
            np.testing.assert_allclose(online, example.values(), rtol=1e-4, atol=1e-4)
            seen.add(example.dataset)
    assert seen == set(crosscoder.info.datasets), "documents and conversations"
    with pytest.raises(NotFound, match="the analysis stored no text 4000000000; there are 0 to"):
        crosscoder.encode(stored_text=4_000_000_000)


def test_a_published_version_is_complete_and_says_where_it_came_from(stack: Stack, made: tuple[Job, Job]):
    folder = stack.home / "crosscoders/demo"
    version = (folder / "CURRENT").read_text().strip()
    manifest = json.loads((folder / "versions" / version / "crosscoder.json").read_text())
    assert manifest["job"] == made[1].id
    assert manifest["recipe"]["crosscoder"]["k"] == 16
    assert [path.name for path in (folder / "versions").iterdir()] == [version]


def test_a_crosscoder_in_others_files_is_measured_and_encodes_like_ours(stack: Stack, made: tuple[Job, Job]):
    ours = stack.client.crosscoder("demo")
    export_version(stack.home / "crosscoders/demo/versions" / ours.info.version_id, stack.home / "files/theirs")
    recipe = json.loads(ours.info.manifest_json)["recipe"]
    shared = {name: recipe[name] for name in ("pair", "layer", "data", "tokens", "analysis")}
    job = stack.client.jobs.submit(shared | {"kind": "published", "name": "theirs", "path": "files/theirs"})
    job.wait(timeout_s=120)
    theirs = stack.client.crosscoder("theirs")
    assert theirs.info.training_tokens == 0
    of_training = {"threshold", "threshold_running", "calibration_tokens"}
    measured = {name: value for name, value in ours.info.metrics.items() if name not in of_training}
    assert theirs.info.metrics == pytest.approx(measured, rel=1e-4)  # scales are folded into the weights
    assert theirs.info.class_counts == ours.info.class_counts
    assert len(theirs.training_curves().steps) == 0
    expected, found = (each.encode(messages=MESSAGES) for each in (ours, theirs))
    assert np.array_equal(found.latents, expected.latents)
    np.testing.assert_allclose(found.activations, expected.activations, rtol=1e-5)


def test_bad_input_is_answered_in_a_sentence_and_harms_nothing(stack: Stack, made: tuple[Job, Job]):
    crosscoder = stack.client.crosscoder("demo")
    with pytest.raises(NotFound, match="nope"):
        stack.client.crosscoder("nope")
    with pytest.raises(NotFound, match="5000"):
        crosscoder.latent(5000)
    with pytest.raises(InvalidInput):
        crosscoder.encode("")
    with pytest.raises(InvalidInput, match="262144"):
        crosscoder.encode("x" * 1_000_000)
    with pytest.raises(InvalidInput, match="tokens"):
        crosscoder.encode("word " * 5000)
    with pytest.raises(InvalidInput):
        crosscoder.encode("lone \ud800 surrogate")
    with pytest.raises(InvalidInput, match="NUL"):
        crosscoder.encode("a\0b")
    with pytest.raises(InvalidInput, match="system"):
        crosscoder.encode(messages=[{"role": "system", "content": "a"}, {"role": "system", "content": "b"}])
    with pytest.raises(InvalidInput, match="robot"):
        crosscoder.encode(messages=[{"role": "robot", "content": "a"}])
    with pytest.raises(InvalidInput, match=r"training\.lrr"):
        stack.client.jobs.submit((ROOT / "recipes/demo.yaml").read_text().replace("  lr:", "  lrr:"))
    typed = crosscoder.encode("a <end_of_turn> b")
    assert TokenRole.TURN_END not in typed.tokens.roles
    assert len(crosscoder.encode("still here").tokens.pieces) > 1


def test_a_recipe_without_its_data_fails_with_a_sentence(stack: Stack, made: tuple[Job, Job]):
    text = (ROOT / "recipes/demo.yaml").read_text().replace("name: demo\npair", "name: broken\npair")
    job = stack.client.jobs.submit(text.replace("data/web.jsonl", "data/none.jsonl"))
    for _ in job.watch():
        pass
    assert job.refresh().state is JobState.FAILED
    assert "no file matches data/none.jsonl" in job.info.message
    assert not (stack.home / "crosscoders/broken").exists()


def test_a_running_job_is_cancelled_and_leaves_nothing(stack: Stack, made: tuple[Job, Job]):
    text = (ROOT / "recipes/demo.yaml").read_text().replace("name: demo\npair", "name: cut\npair")
    job = stack.client.jobs.submit(text.replace("epochs: 2", "epochs: 500"))
    for event in job.watch():
        if event.stage == "train":
            job.cancel()
            break
    with pytest.raises(JobCancelled):
        job.wait(timeout_s=60)
    assert not list(stack.home.glob("crosscoders/cut/versions/*"))


def kill_one(stack: Stack, *words: str) -> None:
    victims = stack.pids(*words)
    assert victims, f"no process with {words}"
    os.kill(victims[0], signal.SIGKILL)


def kill_in_the_middle_of_an_answer(stack: Stack, *words: str) -> None:
    generation = stack.client.crosscoder("demo").generate(
        "A story", temperature=5.0, num_samples=16, max_new_tokens=200, with_code=True
    )
    tokens = iter(generation)
    assert next(tokens).piece
    kill_one(stack, *words)
    with pytest.raises(Unavailable, match="the inference worker ended in the middle of the answer"):
        list(tokens)


@pytest.mark.parametrize(
    "words",
    [("crosscope_worker", "serve"), ("crosscope_worker", "jobs"), ("queue",)],
    ids=["inference worker", "job worker", "queue"],
)
def test_a_killed_process_comes_back_and_the_job_ends_once(stack: Stack, made: tuple[Job, Job], words: tuple[str, ...]):
    name = f"kill-{words[-1]}"
    text = (ROOT / "recipes/demo.yaml").read_text().replace("name: demo\npair", f"name: {name}\npair")
    job = stack.client.jobs.submit(text.replace("checkpoint_every: 250", "checkpoint_every: 10"))
    for event in job.watch():
        if event.stage == "train" and event.step >= 20:
            break
    if "serve" in words:
        kill_in_the_middle_of_an_answer(stack, *words)
    else:
        kill_one(stack, *words)
    job.wait(timeout_s=150)
    versions = list((stack.home / f"crosscoders/{name}/versions").iterdir())
    assert [version.name for version in versions] == [job.refresh().info.version_id]
    fresh = Client(stack.address)
    wait_until_prompts_are_served(fresh)
    assert fresh.crosscoder("demo").encode(f"After {words} was killed").compute_ms > 0
    assert Path(stack.home / f"crosscoders/{name}/CURRENT").read_text().strip() == versions[0].name
