"""Jobs without models, told apart by the recipe's name. Imported by real job processes."""

import errno
import os
import threading
import zlib
from pathlib import Path

from crosscope_proto.artefacts import CrosscoderManifest, PairManifest
from crosscope_proto.recipe import DemoPairRecipe
from crosscope_worker.work import Manifest, Progress, Workspace

KINDS = {"demo-pair": "job_kinds:run_by_name"}


def run_by_name(recipe: DemoPairRecipe, workspace: Workspace, progress: Progress) -> Manifest:
    kind = recipe.name.partition("-")[0]
    home = workspace.home
    (home / f"{recipe.name}.pid").write_text(str(os.getpid()))
    progress("prepare", 0.0, "Getting ready.")
    workspace.checkpoints.mkdir(exist_ok=True)
    (workspace.checkpoints / "state").write_text(os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", ""))
    if kind == "wrong":
        raise ValueError("the data set 'chats' is empty: give it at least one text")
    if kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(home / "big"))
    if kind == "bug":
        raise KeyError("oops")
    if kind == "exit":
        os._exit(3)
    if kind == "learn":
        _learn(workspace, home / f"{recipe.name}.mended", progress)
    if kind == "hold":
        _hold(home / f"{recipe.name}.go", workspace, progress)
    if kind == "deaf":
        _wait(home / f"{recipe.name}.go")
    for step in range(3):
        progress("train", step / 3, step=step, metrics={"loss": 1 / (step + 1)}, rel_norms=[step, 1])
    progress("publish", 0.5)
    workspace.fence()
    with (home / f"{recipe.name}.published").open("a") as file:
        file.write(f"{os.getpid()}\n")
    pair = PairManifest(recipe.name, "base", "chat", "chat")
    if kind != "warned":
        return pair
    shape = {"layer": 0, "d_model": (1, 1), "num_latents": 1, "variant": "l1", "code_normalisation": "crosscoder"}
    others = {"threshold": None, "input_scale": (1.0, 1.0), "recipe": {}, "warnings": ("Half of it was left out.",)}
    return CrosscoderManifest(recipe.name, "v1", pair, **shape | others)


def _learn(workspace: Workspace, mended: Path, progress: Progress) -> None:
    """A training of ten steps with a checkpoint each, whose data has a fault at step 5 until it is repaired."""
    steps = sorted(int(path.name.removeprefix("step-")) for path in workspace.checkpoints.glob("step-*"))
    first = steps[-1] if steps else 0
    progress("learn", first / 10, f"From step {first}.", metrics={"first_step": first})
    for step in range(first, 10):
        if step == 5 and not mended.exists():
            raise zlib.error("Error -3 while decompressing data: invalid stored block lengths")
        (workspace.checkpoints / f"step-{step + 1:09d}").mkdir()
        progress("learn", (step + 1) / 10, step=step + 1)


def _hold(go: Path, workspace: Workspace, progress: Progress) -> None:
    checkpoint = workspace.folder / "step"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    progress("hold", 0.0, f"From step {step}.", metrics={"first_step": step})
    pause = threading.Event()
    while not go.exists():
        step += 1
        beside = checkpoint.with_suffix(".new")
        beside.write_text(str(step))
        beside.replace(checkpoint)
        progress("hold", 0.5, step=step)
        pause.wait(0.02)


def _wait(go: Path) -> None:
    pause = threading.Event()
    while not go.exists():
        pause.wait(0.02)


def say_what_may_be_read(recipe: DemoPairRecipe, workspace: Workspace, progress: Progress) -> PairManifest:
    raise ValueError(f"{list(map(str, workspace.roots.folders))} from {workspace.submitted_from}")


def lose_texts(recipe: DemoPairRecipe, workspace: Workspace, progress: Progress) -> CrosscoderManifest:
    pair = PairManifest(recipe.name, "base", "chat", "chat")
    return CrosscoderManifest(
        name=recipe.name,
        version_id="v1",
        pair=pair,
        layer=0,
        d_model=(1, 1),
        num_latents=1,
        variant="l1",
        code_normalisation="none",
        threshold=None,
        input_scale=(1.0, 1.0),
        recipe={},
        skipped={"lmsys": {"a turn is empty": 3}},
        texts={"lmsys": {"read": 40}},
    )


def fail_oddly(recipe: DemoPairRecipe, workspace: Workspace, progress: Progress) -> PairManifest:
    odd = "lone \ud800 surrogate, NUL \0 and much more: "
    progress("prepare", float("nan"), odd, metrics={"loss": float("inf")})
    raise ValueError(odd + "x" * 10_000)
