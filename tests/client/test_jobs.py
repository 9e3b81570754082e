"""Jobs against a scripted server, which restarts and fails when a test needs it."""

import threading
import time
from dataclasses import replace

import grpc
import pytest
import yaml
from fixtures_waiting import PATIENCE_S

from crosscope import Client, Conflict, DeadlineExceeded, InvalidInput, JobCancelled, JobFailed, JobState, Unavailable
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc


class ScriptedJobs(jobs_pb2_grpc.JobsServicer):
    """One job, "j1", with a log of numbered events; a watcher gets a reply an event and waits for `go` before each."""

    def __init__(self, num_events: int, end: jobs_pb2.JobState.ValueType = jobs_pb2.JOB_STATE_SUCCEEDED) -> None:
        self.num_events, self.end = num_events, end
        self.state = jobs_pb2.JOB_STATE_RUNNING
        self.asked_after: list[str] = []
        self.submitted: list[jobs_pb2.SubmitJobRequest] = []
        self.planned: list[jobs_pb2.PlanJobRequest] = []
        self.go = threading.Semaphore(0)
        self.drop_after: int | None = None

    def job(self) -> jobs_pb2.Job:
        message = "the disk is full" if self.state == jobs_pb2.JOB_STATE_FAILED else ""
        return jobs_pb2.Job(id="j1", kind="crosscoder", name="demo", state=self.state, message=message, stage="train")

    def SubmitJob(self, request, context):
        self.submitted.append(request)
        return jobs_pb2.SubmitJobResponse(job=self.job(), warnings=["the warm-up is long"])

    def PlanJob(self, request, context):
        self.planned.append(request)
        steps = jobs_pb2.PlanEntry(name="steps", value=1234, note="of 10 tokens")
        models = jobs_pb2.PlanEntry(name="both models", value=2.5e9, unit="bytes")
        training = jobs_pb2.PlanEntry(name="training", unit="seconds", note="no rates")
        device = jobs_pb2.DevicePlan(
            name="2 CPU cores",
            memory_bytes=2_000_000_000,
            memory=[models],
            fit=jobs_pb2.FIT_NO,
            ways_out=["training.batch_size 16 would fit"],
            times=[training],
        )
        return jobs_pb2.PlanJobResponse(
            job=self.job(),
            warnings=["the warm-up is long"],
            entries=[steps],
            devices=[device],
            downloads=[jobs_pb2.Download(field="pair.base", source="a/b", size_bytes=5_200_000_000, gated=True)],
        )

    def ReadJobLog(self, request, context):
        line = jobs_pb2.LogLine(at=1e9, attempt=2, event="stage", text="train: step 1")
        return jobs_pb2.ReadJobLogResponse(lines=[line], num_before=request.lines, has_more=False)

    def GetJob(self, request, context):
        return jobs_pb2.GetJobResponse(job=self.job())

    def ListJobs(self, request, context):
        return jobs_pb2.ListJobsResponse(jobs=[self.job()])

    def CancelJob(self, request, context):
        self.state = jobs_pb2.JOB_STATE_CANCELLED
        return jobs_pb2.CancelJobResponse(job=self.job())

    def RetryJob(self, request, context):
        if self.state == jobs_pb2.JOB_STATE_RUNNING:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "job 'j1' runs")
        self.state = jobs_pb2.JOB_STATE_QUEUED
        return jobs_pb2.RetryJobResponse(job=self.job())

    def GetRecipeSchema(self, request, context):
        return jobs_pb2.GetRecipeSchemaResponse(json_schema='{"title": "recipe"}')

    def WatchJob(self, request, context):
        self.asked_after.append(request.after_event)
        yield jobs_pb2.WatchJobResponse(job=self.job())
        for number in range(int(request.after_event or 0) + 1, self.num_events + 1):
            if not self.go.acquire(timeout=PATIENCE_S):
                return
            if not context.is_active():
                return
            if number == self.num_events:
                self.state = self.end
            event = jobs_pb2.JobEvent(id=str(number), stage="train", fraction=number / self.num_events)
            yield jobs_pb2.WatchJobResponse(job=self.job(), events=[event])
            if number == self.drop_after:
                self.drop_after = None
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def release(self, count: int = 100) -> None:
        for _ in range(count):
            self.go.release()


def test_watch_and_wait(serve) -> None:
    scripted = ScriptedJobs(3)
    scripted.release()
    with Client(serve(scripted).address) as client:
        job = client.jobs.get("j1")
        assert job.state is JobState.RUNNING
        assert [event.id for event in job.watch()] == ["1", "2", "3"]
        assert job.state is JobState.SUCCEEDED
        assert job.wait() is job
        assert [event.id for event in client.jobs.get("j1").watch(after_event="2")] == ["3"]
        assert repr(job) == "Job('j1', crosscoder 'demo', succeeded)"


def test_retry(serve) -> None:
    scripted = ScriptedJobs(1)
    with Client(serve(scripted).address) as client:
        job = client.jobs.get("j1")
        with pytest.raises(Conflict, match="job 'j1' runs"):
            job.retry()
        scripted.state = jobs_pb2.JOB_STATE_FAILED
        assert job.retry() is job
        assert job.state is JobState.QUEUED
        scripted.state = jobs_pb2.JOB_STATE_CANCELLED
        assert client.jobs.retry("j1").state is JobState.QUEUED


def test_the_end_of_a_log(serve) -> None:
    with Client(serve(ScriptedJobs(1)).address) as client:
        log = client.jobs.get("j1").log(7)
        assert (log.num_before, log.has_more) == (7, False)
        assert [(line.attempt, line.event, line.text) for line in log.lines] == [(2, "stage", "train: step 1")]
        assert client.jobs.log("j1").num_before == 100
        with pytest.raises(InvalidInput, match="lines"):
            client.jobs.log("j1", 0)


def test_a_plan_and_warnings(serve) -> None:
    scripted = ScriptedJobs(1)
    with Client(serve(scripted).address) as client:
        found = client.jobs.plan("kind: demo-pair\nname: a\n")
        assert [(entry.name, entry.value, entry.unit) for entry in found.entries] == [
            ("steps", 1234, ""),
        ]
        device = found.devices[0]
        assert (device.fits, device.needed_bytes, device.free_bytes) == (False, 2.5e9, None)
        assert (device.times[0].value, device.times[0].note) == (None, "no rates")
        assert found.downloads[0].gated
        client.jobs.plan("kind: demo-pair\nname: a\n", after="j0", device="h100")
        asked = scripted.planned[-1]
        assert (list(asked.after), asked.device) == (["j0"], "h100")
        assert found.warnings == client.jobs.submit("kind: demo-pair\nname: a\n").warnings == ("the warm-up is long",)


def test_a_watch_keeps_the_recipe_that_was_sent_once(serve) -> None:
    scripted = ScriptedJobs(2)
    scripted.release()
    with Client(serve(scripted).address) as client:
        job = client.jobs.get("j1")
        job.info = replace(job.info, recipe_yaml="kind: demo-pair")
        assert {update.job.recipe_yaml for update in job.updates()} == {"kind: demo-pair"}


def test_watch_goes_on_after_a_broken_connection(serve) -> None:
    scripted = ScriptedJobs(5)
    scripted.drop_after = 2
    scripted.release()
    with Client(serve(scripted).address) as client:
        assert [event.id for event in client.jobs.get("j1").watch()] == ["1", "2", "3", "4", "5"]
    assert scripted.asked_after == ["", "2"]


def test_watch_goes_on_after_a_restart_of_the_server(serve) -> None:
    scripted = ScriptedJobs(5)
    scripted.release(3)
    served = serve(scripted)
    with Client(served.address) as client:
        watch = client.jobs.get("j1").watch()
        seen = [next(watch).id for _ in range(3)]
        served.stop()
        starter = threading.Timer(0.3, lambda: (served.start(), scripted.release()))
        starter.start()
        seen += [event.id for event in watch]
        starter.join()
    assert seen == ["1", "2", "3", "4", "5"]
    assert scripted.asked_after[0] == ""
    assert set(scripted.asked_after[1:]) == {"3"}


def test_failed_and_cancelled(serve) -> None:
    scripted = ScriptedJobs(1, end=jobs_pb2.JOB_STATE_FAILED)
    scripted.release()
    with Client(serve(scripted).address) as client, pytest.raises(JobFailed, match=r"demo.*the disk is full") as caught:
        client.jobs.get("j1").wait()
    assert caught.value.job.state is JobState.FAILED

    with Client(serve(ScriptedJobs(1)).address) as client:
        job = client.jobs.get("j1").cancel()
        assert job.state is JobState.CANCELLED
        with pytest.raises(JobCancelled, match=r"j1.*cancelled"):
            job.wait()
        assert client.jobs.cancel("j1").state is JobState.CANCELLED


def test_wait_no_longer_than_asked(serve) -> None:
    scripted = ScriptedJobs(1)
    with Client(serve(scripted).address) as client:
        job = client.jobs.get("j1")
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"still running after 0\.3 s"):
            job.wait(timeout_s=0.3)
        assert time.monotonic() - started < 3
    scripted.release()


def test_wait_gives_up_when_no_server_answers(serve, monkeypatch) -> None:
    monkeypatch.setattr("crosscope._sync.jobs._RECONNECT_S", 0.2)
    scripted = ScriptedJobs(2)
    served = serve(scripted)
    with Client(served.address) as client:
        job = client.jobs.get("j1")
        served.stop()
        with pytest.raises(Unavailable, match="no server answers"):
            job.wait()
    scripted.release()


def test_submit(serve, tmp_path) -> None:
    scripted = ScriptedJobs(1)
    (tmp_path / "recipe.yaml").write_text("kind: demo-pair\nname: demo\n")
    with Client(serve(scripted).address) as client:
        first = client.jobs.submit(tmp_path / "recipe.yaml")
        client.jobs.submit(str(tmp_path / "recipe.yaml"), after=[first, "j0"])
        client.jobs.submit("kind: demo-pair\nname: demo\n", after=first, validate_only=True)
        client.jobs.submit({"kind": "demo-pair", "name": "demo"})
        for given in ("nowhere.yaml", b"kind: x", "kind: \ud800"):
            with pytest.raises(InvalidInput):
                client.jobs.submit(given)  # pyright: ignore[reportArgumentType]
        assert client.jobs.schema() == {"title": "recipe"}
        assert [job.id for job in client.jobs.list(limit=5)] == ["j1"]
    requests = scripted.submitted
    assert len(requests) == 4
    assert {yaml.safe_load(request.recipe_yaml)["name"] for request in requests} == {"demo"}
    assert [list(request.after) for request in requests] == [[], ["j1", "j0"], ["j1"], []]
    assert [request.validate_only for request in requests] == [False, False, True, False]
    assert len({request.idempotency_key for request in requests}) == 4
    assert [request.folder for request in requests] == [str(tmp_path), str(tmp_path), "", ""]
