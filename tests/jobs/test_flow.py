"""Jobs through the public API, with a real Redis, server and worker."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import redis
from fixtures_waiting import until

from crosscope_proto import job_record, keys
from crosscope_proto.v1 import jobs_pb2
from tests.jobs.rig import Rig, is_alive

SUCCEEDED, FAILED, CANCELLED = jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED
NUM_CORES = len(os.sched_getaffinity(0))
QUEUED, RUNNING = jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING


def test_a_job_runs_and_reports(rig: Rig) -> None:
    submitted = rig.submit("plain", folder="/home/mine")
    assert submitted.state == QUEUED
    replies = list(rig.watch(submitted.id))
    job, events = replies[-1].job, [event for reply in replies for event in reply.events]

    assert (job.state, job.message, job.attempt, job.stage, job.fraction) == (SUCCEEDED, "Done.", 1, "publish", 1)
    assert job.created_at <= job.started_at <= job.ended_at
    assert job.metrics["loss"] == pytest.approx(1 / 3)
    assert set(job.stage_seconds) == {"prepare", "train", "publish"}
    assert [event.metrics["loss"] for event in events if event.metrics] == [1, 1 / 2, 1 / 3]
    assert [event.step for event in events if event.metrics] == [0, 1, 2]
    assert [list(event.rel_norms) for event in events if event.metrics] == [[0, 1], [1, 1], [2, 1]]
    told = [event.message for event in events if event.message]
    assert told == ["Queued.", "Started.", "Getting ready.", "Done."]
    assert rig.published("plain") == 1

    with redis.Redis(unix_socket_path=str(rig.socket), decode_responses=True) as client:
        assert client.hget(keys.job_key(job.id), "folder") == "/home/mine"
    folder = rig.home / "jobs" / job.id
    assert (folder / "recipe.yaml").read_text() == replies[0].job.recipe_yaml
    assert {reply.job.recipe_yaml for reply in replies[1:]} == {""}  # said once, not with every event
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "stage", "stage", "stage", "end"]
    log = rig.jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(id=job.id, lines=2))
    assert [(line.attempt, line.event, line.text) for line in log.lines] == [
        (1, "stage", "publish"),
        (1, "end", "succeeded: Done."),
    ]
    assert (log.num_before, log.has_more) == (3, False)
    again = rig.jobs.PlanJob(jobs_pb2.PlanJobRequest(recipe_yaml=replies[0].job.recipe_yaml))
    entries = {entry.name: entry.value for entry in again.entries}
    assert entries["last job of this name"] == pytest.approx(sum(job.stage_seconds.values()))


def test_what_a_job_warns_of_stands_in_its_last_message(rig: Rig) -> None:
    assert rig.wait(rig.submit("warned").id).message == "Done. Half of it was left out."


@pytest.mark.parametrize(("name", "goes"), [("hold-kept", True), ("hold-cancelled", False)])
def test_checkpoints_go_when_the_job_has_succeeded(rig: Rig, name: str, goes: bool) -> None:
    job = rig.submit(name)
    rig.holding(job.id)
    folder = rig.home / "jobs" / job.id
    assert (folder / "checkpoints" / "state").read_text() == "1"  # no progress bars in a job's log
    if goes:
        rig.go(name)
    else:
        rig.cancel(job.id)
    assert rig.wait(job.id).state == (SUCCEEDED if goes else CANCELLED)
    after = rig.wait(rig.submit(f"plain-after-{name}").id)  # the worker has settled the first job by then
    assert after.state == SUCCEEDED
    assert (folder / "checkpoints").exists() != goes
    assert (folder / "log.jsonl").exists()


def test_a_watch_goes_on_after_the_last_event_seen(rig: Rig) -> None:
    job = rig.submit("hold-watch")
    stream = rig.watch(job.id)
    seen = []
    for reply in stream:
        seen += reply.events
        if reply.job.stage == "hold":
            break
    stream.cancel()
    rig.go("hold-watch")
    later = [event for reply in rig.watch(job.id, after=seen[-1].id) for event in reply.events]
    everything = [event for reply in rig.watch(job.id) for event in reply.events]

    assert [event.id for event in seen + later] == [event.id for event in everything]
    assert [event.id for event in everything] == sorted(
        (event.id for event in everything), key=lambda event_id: tuple(map(int, event_id.split("-")))
    )


def test_jobs_wait_for_those_before_them(rig: Rig) -> None:
    first = rig.submit("hold-first")
    second = rig.submit("second", first.id)
    third = rig.submit("third", first.id, second.id)
    rig.holding(first.id)
    assert rig.get(third.id).state == QUEUED
    assert list(rig.get(third.id).after) == [first.id, second.id]
    rig.go("hold-first")
    done = [rig.wait(job.id) for job in (first, second, third)]

    assert [job.state for job in done] == [SUCCEEDED] * 3
    assert done[0].ended_at <= done[1].started_at <= done[1].ended_at <= done[2].started_at


def test_a_job_after_one_that_has_succeeded_starts(rig: Rig) -> None:
    first = rig.wait(rig.submit("early").id)
    assert rig.wait(rig.submit("late", first.id).id).state == SUCCEEDED


def test_jobs_after_a_failing_one_fail_and_say_why(rig: Rig) -> None:
    first = rig.submit("wrong-first")
    second = rig.submit("after-wrong", first.id)
    third = rig.submit("after-after-wrong", second.id)
    assert rig.wait(first.id).message == "the data set 'chats' is empty: give it at least one text"
    ended = rig.wait(second.id)
    assert ended.state == FAILED
    assert ended.message == (f"Not started: demo-pair 'wrong-first' (job {first.id}), which it waits for, failed.")
    assert rig.wait(third.id).state == FAILED
    with pytest.raises(grpc.RpcError) as refused:
        rig.submit("too-late", first.id)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("full-disk", "The disk is full ("),
        ("bug-inside", "Unexpected KeyError: 'oops'. The traceback is in "),
    ],
)
def test_failures_are_sentences(rig: Rig, name: str, sentence: str) -> None:
    job = rig.wait(rig.submit(name).id)
    assert job.state == FAILED
    assert job.message.startswith(sentence)
    assert "Traceback" not in job.message
    assert "Traceback" in (rig.home / "jobs" / job.id / "log.jsonl").read_text()


def test_a_process_that_dies_is_started_three_times(rig: Rig) -> None:
    job = rig.wait(rig.submit("exit-always").id)
    assert (job.state, job.attempt) == (FAILED, 3)
    assert "ended with exit code 3" in job.message


def test_cancel_while_queued(rig: Rig) -> None:
    running = rig.submit("hold-busy")
    rig.holding(running.id)
    queued, behind = rig.submit("never"), rig.submit("behind")
    assert [rig.get(job.id).queue_position for job in (queued, behind)] == [0, 1]
    dependent = rig.submit("never-either", queued.id)
    ended = rig.cancel(queued.id)
    assert (ended.state, ended.message) == (CANCELLED, "Cancelled before it started.")
    assert rig.get(behind.id).queue_position == 0
    assert rig.wait(dependent.id).state == CANCELLED
    rig.go("hold-busy")
    assert rig.wait(behind.id).state == SUCCEEDED
    assert rig.published("never") == 0
    assert rig.cancel(behind.id).state == SUCCEEDED


def test_cancel_while_running(rig: Rig) -> None:
    job = rig.submit("hold-cancel")
    rig.holding(job.id)
    rig.cancel(job.id)
    ended = rig.wait(job.id)
    assert (ended.state, ended.message) == (CANCELLED, "Cancelled.")
    assert ended.ended_at > 0
    assert rig.published("hold-cancel") == 0


def test_cancel_at_the_fence(rig: Rig) -> None:
    job = rig.submit("deaf-fence")
    rig.wait_for(job.id, lambda job: job.stage == "prepare")
    assert rig.cancel(job.id).message == "Stopping."
    rig.go("deaf-fence")
    assert rig.wait(job.id).state == CANCELLED
    assert rig.published("deaf-fence") == 0


def test_kill_9_of_a_jobs_process_resumes_it_at_once(rig: Rig) -> None:
    job = rig.submit("hold-killed")
    rig.holding(job.id)
    os.kill(rig.pid("hold-killed"), signal.SIGKILL)
    rig.wait_for(job.id, lambda job: job.attempt == 2 and job.stage == "hold")
    rig.go("hold-killed")
    assert rig.wait(job.id).state == SUCCEEDED
    assert rig.published("hold-killed") == 1


def test_a_job_that_does_not_stop_is_killed(rig: Rig) -> None:
    job = rig.submit("deaf-one")
    rig.wait_for(job.id, lambda job: job.stage == "prepare")
    rig.cancel(job.id)
    long_ago = str(rig.get(job.id).started_at - job_record.CANCEL_GRACE_S)
    with redis.Redis(unix_socket_path=str(rig.socket)) as client:
        client.hset(keys.job_key(job.id), "cancel_at", long_ago)
    assert rig.wait(job.id).state == jobs_pb2.JOB_STATE_CANCELLED
    until(lambda: not is_alive(rig.pid("deaf-one")))  # it writes its end, then it goes


def test_one_job_a_key(rig: Rig) -> None:
    first = rig.submit("once", key="my-submission")
    again = rig.submit("other", key="my-submission")
    assert (again.id, again.name) == (first.id, "once")
    assert rig.submit("once", key="another").id != first.id


def test_jobs_are_listed_newest_first(rig: Rig) -> None:
    made = [rig.submit(f"listed-{i}").id for i in range(3)]
    listed = rig.jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=3)).jobs
    assert [job.id for job in listed] == made[::-1]
    assert all(job.recipe_yaml for job in listed)
    short = rig.jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=3, without_recipes=True)).jobs
    assert {job.recipe_yaml for job in short} == {""}
    for job_id in made:
        rig.cancel(job_id)


def test_a_job_of_before_its_share_was_recorded_is_done(rig: Rig) -> None:
    made = rig.wait(rig.submit("of-before").id)
    client = redis.Redis(unix_socket_path=str(rig.socket))
    assert client.hdel(keys.job_key(made.id), "total_fraction") == 1
    client.close()
    assert rig.jobs.GetJob(jobs_pb2.GetJobRequest(id=made.id)).job.total_fraction == 1


def test_bad_requests(rig: Rig) -> None:
    def code(call: Callable[..., object], *arguments: object) -> tuple[grpc.StatusCode, str | None]:
        with pytest.raises(grpc.RpcError) as refused:
            call(*arguments)
        return refused.value.code(), refused.value.details()

    submit = rig.jobs.SubmitJob
    bad = code(submit, jobs_pb2.SubmitJobRequest(recipe_yaml="kind: demo-pair\nname: a\nlayers: 3\n"))
    assert bad == (grpc.StatusCode.INVALID_ARGUMENT, "layers: no such key; check its spelling")
    unknown = code(rig.submit, "x", "no-such-job")
    assert unknown == (grpc.StatusCode.INVALID_ARGUMENT, "after[0]: there is no job 'no-such-job' to wait for")
    log = jobs_pb2.ReadJobLogRequest
    assert code(rig.jobs.ReadJobLog, log(id="nope"))[0] == grpc.StatusCode.NOT_FOUND
    assert code(rig.jobs.ReadJobLog, log(id="nope", lines=1001))[0] == grpc.StatusCode.INVALID_ARGUMENT
    device = jobs_pb2.PlanJobRequest(recipe_yaml="kind: demo-pair\nname: a\n", device="abacus")
    assert code(rig.jobs.PlanJob, device)[1] == "device: no rates were measured on 'abacus'; there are h100, cpu"
    assert code(rig.get, "nope")[0] == grpc.StatusCode.NOT_FOUND
    assert code(rig.cancel, "nope")[0] == grpc.StatusCode.NOT_FOUND
    assert code(list, rig.watch("nope"))[0] == grpc.StatusCode.NOT_FOUND
    assert code(list, rig.watch("nope", after="yesterday"))[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_only_checking_queues_nothing(rig: Rig) -> None:
    request = jobs_pb2.SubmitJobRequest(recipe_yaml="kind: demo-pair\nname: dry\n", validate_only=True)
    job = rig.jobs.SubmitJob(request).job
    assert (job.id, job.kind, job.name) == ("", "demo-pair", "dry")
    assert all(other.name != "dry" for other in rig.jobs.ListJobs(jobs_pb2.ListJobsRequest()).jobs)


def test_a_check_looks_for_what_the_recipe_names(rig: Rig) -> None:
    recipe = (
        "{kind: crosscoder, name: a, layer: 1, pair: {name: none-such},"
        " crosscoder: {variant: l1, num_latents: 8, mu: 1},"
        " data: [{name: web, source: text, path: none.txt}], training: {max_steps: 9, warmup_steps: 10, log_every: 1}}"
    )
    with pytest.raises(grpc.RpcError) as refused:
        rig.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=recipe, validate_only=True))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    said = refused.value.details() or ""
    assert "pair.name: there is no pair 'none-such' (there: none)" in said
    assert "data.0.path: no file matches none.txt in " in said

    before = rig.wait(rig.submit("plain-before").id)
    request = jobs_pb2.SubmitJobRequest(recipe_yaml=recipe, validate_only=True, after=[before.id])
    checked = rig.jobs.SubmitJob(request)
    assert checked.job.id == ""
    assert checked.warnings[0] == "there is no pair 'none-such' yet; a job before this one must make it"
    planned = rig.jobs.PlanJob(jobs_pb2.PlanJobRequest(recipe_yaml=recipe, after=[before.id]))
    assert (planned.job.id, planned.warnings) == ("", checked.warnings)
    assert [(entry.name, entry.value) for entry in planned.entries[:2]] == [("training tokens", 9 * 2048), ("steps", 9)]
    assert [re.sub("cores?", "cores", each.name) for each in planned.devices] == [f"{NUM_CORES} CPU cores"]
    assert planned.devices[0].memory_bytes > planned.devices[0].free_bytes > 1 << 20
    assert not any(entry.HasField("value") for entry in planned.devices[0].times)  # the pair is not there yet
    assert checked.warnings[-1].startswith("training.warmup_steps 10: the learning rate never reaches training.lr")
    queued = rig.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=recipe))
    assert "pair.name: there is no pair 'none-such' (there: none)" in queued.warnings[0]
    assert rig.wait(queued.job.id).state == FAILED  # this rig's worker runs no jobs of its kind


def test_the_schema_names_every_kind(rig: Rig) -> None:
    schema = json.loads(rig.jobs.GetRecipeSchema(jobs_pb2.GetRecipeSchemaRequest()).json_schema)
    assert set(schema["discriminator"]["mapping"]) == {
        "crosscoder",
        "published",
        "look",
        "causal",
        "label",
        "demo-pair",
    }


def test_a_job_in_the_middle_of_a_step_ends_before_its_worker_would_kill_it(rig: Rig) -> None:
    job = rig.submit("deaf-long")
    rig.wait_for(job.id, lambda job: job.stage == "prepare")
    asked_at = time.time()
    rig.cancel(job.id)
    ended = rig.wait(job.id)
    assert (ended.state, ended.message) == (CANCELLED, "Cancelled.")
    assert ended.ended_at - asked_at < job_record.CANCEL_GRACE_S
    until(lambda: not is_alive(rig.pid("deaf-long")))


def test_an_attempt_that_lost_its_job_publishes_nothing(rig: Rig) -> None:
    job = rig.submit("deaf-stale")
    rig.wait_for(job.id, lambda job: job.stage == "prepare")
    stale = rig.pid("deaf-stale")
    with redis.Redis(unix_socket_path=str(rig.socket)) as client:
        client.hset(keys.job_key(job.id), "claim", "of-a-later-attempt")
    rig.go("deaf-stale")
    until(lambda: not is_alive(stale))
    assert rig.wait(job.id).attempt == 2
    publisher = (rig.home / "deaf-stale.published").read_text().split()
    assert publisher == [str(rig.pid("deaf-stale"))]
    assert publisher != [str(stale)]


def test_a_storm_of_cancels_ends_a_job_once(rig: Rig) -> None:
    job, waiting = rig.submit("hold-storm"), [rig.submit(f"plain-{number}") for number in range(5)]
    rig.holding(job.id)
    with ThreadPoolExecutor(16) as people:
        ids = [job.id, *(each.id for each in waiting)] * 20
        assert {reply.id for reply in people.map(rig.cancel, ids)} == set(ids)
    assert [rig.wait(each.id).state for each in (job, *waiting)] == [CANCELLED] * 6
    said = [event.message for reply in rig.watch(job.id) for event in reply.events]
    assert (said.count("Stopping."), sum(text.startswith("Cancelled.") for text in said)) == (1, 1)
    assert [rig.published(f"plain-{number}") for number in range(5)] == [0] * 5
    assert rig.wait(rig.submit("after-storm").id).state == SUCCEEDED
