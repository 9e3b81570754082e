"""A look from the command line to the latents of a crosscoder, with the real job and inference workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crosscope import Job

from .conftest import ROOT, Stack

pytestmark = pytest.mark.slow


def test_a_look_is_made_shown_and_explained(stack: Stack, made: tuple[Job, Job]):
    environment = os.environ | {"CROSSCOPE_ADDRESS": stack.address}
    program = str(Path(sys.executable).parent / "crosscope")

    def run(*arguments: str) -> str:
        command = [program, "look", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("--name", "small", "--max-tokens", "1500", "--watch", "--json")
    document = json.loads(run("recipes/demo-look.yaml", *options).splitlines()[-1])
    assert document["info"]["num_tokens"] >= 1500
    assert [each["layer"] for each in document["layers"]] == [0, 1, 2, 3]
    look = stack.client.look("small")
    assert look.info.figures["mean_kl"] == document["info"]["figures"]["mean_kl"]
    assert look.recommended_layer is not None
    demo = stack.client.crosscoder("demo")
    explained = look.explain(demo, limit=2)
    for each in explained:
        # The inference worker reads the tokens as the look's job read them, so the KL is the same.
        assert each.both.ablation.explained == (each.finding.position,)
        assert each.both.ablation.value == pytest.approx(each.finding.kl, rel=1e-3, abs=1e-5)
    shown = json.loads(run("--explain", "demo", "--show", "small", "--limit", "1", "--json"))
    assert shown[0]["finding"]["kl"] == explained[0].finding.kl
    assert [entry["latent"] for entry in shown[0]["latents"]] == [entry.latent for entry in explained[0].latents]
