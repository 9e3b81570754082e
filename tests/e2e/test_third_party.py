"""A gRPC client of another language that learns everything from reflection."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from crosscope import Job
from crosscope_proto.access import OWN_TOKEN

from .conftest import Stack

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent / "third_party"


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm on PATH")
def test_node_lists_latents_and_encodes_a_prompt(stack: Stack, made: tuple[Job, Job], tmp_path: Path):
    for name in ("package.json", "ask.mjs"):
        shutil.copy(SOURCE / name, tmp_path)
    install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=120)
    environment = os.environ | {"CROSSCOPE_TOKEN": (stack.home / OWN_TOKEN).read_text().strip()}
    command = ["node", "ask.mjs", stack.address, "demo"]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    assert {"crosscope.v1.Latents", "crosscope.v1.Prompts", "crosscope.v1.Jobs"} <= set(said["services"])
    best = stack.client.crosscoder("demo").latents(order_by="-rel_norm", limit=3)
    assert [row[0] for row in said["latents"]] == [latent.id for latent in best]
    assert said["latents"][0][1] == pytest.approx(best[0].rel_norm)
    assert said["pieces"] == list(stack.client.crosscoder("demo").tokenize("A question from another language.").pieces)
    assert said["num_active"] > 0
    assert said["refusal"]["code"] == 3
    assert "text" in said["refusal"]["details"]
