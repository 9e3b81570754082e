"""Everything that docs/client.md shows runs as it stands there."""

import re
from pathlib import Path

from fixtures_snippets import run_snippet

import crosscope
from crosscope import Client
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc

from .scripted_effects import NamedLatents, ScriptedEffects

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
BLOCKS = [each for each in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "demo-l1" not in each]
"""All but the one that needs two crosscoders with weights; test_groups runs that."""


class OneJob(jobs_pb2_grpc.JobsServicer):
    """A job that has succeeded."""

    job = jobs_pb2.Job(id="j1", kind="crosscoder", name="demo", state=jobs_pb2.JOB_STATE_SUCCEEDED)

    def SubmitJob(self, request, context):
        return jobs_pb2.SubmitJobResponse(job=self.job)

    def PlanJob(self, request, context):
        device = jobs_pb2.DevicePlan(name="2 CPU cores", fit=jobs_pb2.FIT_YES)
        return jobs_pb2.PlanJobResponse(job=self.job, devices=[device])

    def ReadJobLog(self, request, context):
        return jobs_pb2.ReadJobLogResponse(lines=[jobs_pb2.LogLine(attempt=1, event="end", text="succeeded: Done.")])

    def RetryJob(self, request, context):
        return jobs_pb2.RetryJobResponse(job=self.job)

    def ListJobs(self, request, context):
        return jobs_pb2.ListJobsResponse(jobs=[self.job])

    def WatchJob(self, request, context):
        event = jobs_pb2.JobEvent(id="1", stage="train", fraction=1.0, metrics={"l0": 12.0})
        yield jobs_pb2.WatchJobResponse(job=self.job, events=[event])


def forget_words(client: Client) -> None:
    """Takes the words of the page away: other tests read the same latents."""
    words = client.crosscoder("demo").annotations
    words.label(7, None)
    words.note(7, None)
    words.star(7, False)
    words.delete_list("refusals")


def test_python(online: Client, serve, monkeypatch, capsys, tmp_path) -> None:
    assert len(BLOCKS) == 10
    monkeypatch.setenv("CROSSCOPE_ADDRESS", online.address)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS[:5]:
        run_snippet(block, names)
    shown = capsys.readouterr().out
    assert "'prompts': True" in shown
    assert "[7, 12, 3]" in shown, "a list keeps its order"
    forget_words(online)
    run_snippet(BLOCKS[9], {})
    assert capsys.readouterr().out.splitlines() == ["9", "8"], "tokens of two texts"
    monkeypatch.chdir(ROOT)
    with Client(serve(OneJob()).address) as client:
        run_snippet(BLOCKS[8], {"client": client})
    assert capsys.readouterr().out.splitlines() == [
        "train 100% {'l0': 12.0}",
        "2 CPU cores True None () ()",
        "() () () 0.0 0.0",
        "1 end succeeded: Done.",
        "['demo']",
    ]


def test_compare_and_steer(serve, capsys) -> None:
    with Client(serve(NamedLatents(), ScriptedEffects()).address) as client:
        names: dict[str, object] = {"client": client}
        run_snippet(BLOCKS[6], names)
        run_snippet(BLOCKS[7], names)
    shown = capsys.readouterr().out
    assert "base with chat's stream" in shown
    assert "latent 7 (peaks:" in shown
    assert "── base, 7,8 transplant ──\nyes" in shown


def test_the_tree_of_errors_is_the_one_in_the_code() -> None:
    import crosscope._errors as module

    shown = set(re.findall(r"[├└]── (\w+)", PAGE))
    assert shown == set(re.findall(r"[├└]── (\w+)", module.__doc__ or ""))
    assert shown <= set(crosscope.__all__)
