"""A labelling through the real queue, job worker and server: killed in the middle, it asks nothing twice."""

import os
import signal
import threading

import psutil
from fixtures_endpoint import Answer, run_endpoint
from fixtures_labelled import WORDS, write_planted
from fixtures_waiting import PATIENCE_S, until

from crosscope_proto.v1 import annotations_pb2, annotations_pb2_grpc, jobs_pb2
from tests.jobs.rig import Rig

PLANTED = annotations_pb2.WordsOf(crosscoder="planted")


def test_a_killed_labelling_goes_on_and_leaves_peoples_words(bare_rig: Rig) -> None:
    rig = bare_rig
    write_planted(rig.home)
    rig.start_redis()
    rig.start_server()
    worker = rig.start_real_worker(RULES_API_KEY="sk-secret", OTHER_API_KEY="sk-other")
    words = annotations_pb2_grpc.AnnotationsStub(rig.channel)
    words.SetLabel(annotations_pb2.SetLabelRequest(of=PLANTED, latent=0, text="mine", author="ada"))
    held, go_on = threading.Event(), threading.Event()

    def before(number: int, _: str) -> Answer | None:
        if number == 12:  # in the middle of the third latent
            held.set()
            go_on.wait(PATIENCE_S)
        return None

    with run_endpoint() as endpoint:
        endpoint.before = before
        recipe = f"""
kind: label
name: planted
explainer: {{by: endpoint, address: {endpoint.address}, model: rules, concurrency: 1, key: RULES_API_KEY}}
examples: {{shown: 4, held_out: 6}}
"""
        job = rig.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=recipe), timeout=PATIENCE_S).job
        assert held.wait(PATIENCE_S)
        answered = list(endpoint.answered)
        (child,) = [each for each in psutil.Process(worker.pid).children() if "entry" in " ".join(each.cmdline())]
        environment = child.environ()
        os.kill(child.pid, signal.SIGKILL)
        go_on.set()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        ended = rig.wait(job.id)
        assert ended.state == jobs_pb2.JOB_STATE_SUCCEEDED, ended.message
        assert ended.attempt == 2
        asked = endpoint.prompts[13:]
    assert len(answered) == 12
    assert not set(answered) & set(asked), "what was answered before the kill is not asked again"
    assert len(answered) + len(asked) == 5 * 5
    assert {each["authorization"] for each in endpoint.headers} == {"Bearer sk-secret"}
    assert environment["RULES_API_KEY"] == "sk-secret"
    assert "OTHER_API_KEY" not in environment
    assert ended.message.startswith("Done. 5 of 5 latents labelled.")
    assert ended.metrics["labelled"] == 5
    assert ended.metrics["mean_detection"] == 0.625
    for latent, word in enumerate(WORDS[:-1]):
        found = words.GetAnnotation(annotations_pb2.GetAnnotationRequest(of=PLANTED, latent=latent)).annotation
        assert (found.automatic_label.text, found.automatic_label.author) == (word, "rules")
        assert found.automatic_label.scores["fuzzing"] == 1.0
        assert found.label.text == ("mine" if latent == 0 else "")
    logs = (rig.home / "jobs" / job.id).rglob("*")
    assert all(b"sk-secret" not in path.read_bytes() for path in logs if path.is_file())
