"""A checkpoint of one file, as versions before ranks wrote it: a training goes on from it as from one of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import make_recipe, run
from safetensors.torch import load_file, save_file


def written_in_one_file(folder: Path) -> None:
    """Writes a checkpoint anew as earlier versions did: all tensors in one file, the buffer's with a prefix, and the
    source's state beside the counters; the recipe knew neither devices nor streams.
    """
    state = json.loads((folder / "state.json").read_text())
    for name in ("devices", "streams"):
        del state["recipe"]["training"][name]
    source = json.loads((folder / "stream-0.json").read_text())
    earlier = {name: state[name] for name in ("step", "recipe", "counters")} | {"source": source}
    tensors = load_file(folder / "latents-0-24.safetensors") | load_file(folder / "shared.safetensors")
    tensors |= {f"buffer.{name}": each for name, each in load_file(folder / "stream-0.safetensors").items()}
    tensors = {name: each.clone() for name, each in tensors.items()}  # the files go
    for path in folder.iterdir():
        path.unlink()
    (folder / "state.json").write_text(json.dumps(earlier))
    save_file(tensors, folder / "tensors.safetensors")


@pytest.mark.parametrize(
    "crosscoder", [{"variant": "batch_topk", "num_latents": 24, "k": 2}, {"variant": "l1", "num_latents": 24, "mu": 1}]
)
def test_a_training_goes_on_from_a_checkpoint_of_one_file(tmp_path: Path, crosscoder: dict[str, Any]) -> None:
    recipe = make_recipe(crosscoder, checkpoint_every=4)
    undisturbed = run(recipe, tmp_path / "undisturbed")

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "stopped", progress=stop)
    (folder,) = (tmp_path / "stopped").iterdir()
    written_in_one_file(folder)
    assert [path.name for path in sorted(folder.iterdir())] == ["state.json", "tensors.safetensors"]

    steps: list[int] = []

    def note(*_: Any, step: int = 0, **__: Any) -> None:
        steps.append(step)

    resumed = run(recipe, tmp_path / "stopped", progress=note)
    assert next(filter(None, steps)) in (8, 9)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(resumed.crosscoder, name), getattr(undisturbed.crosscoder, name)), name
    assert resumed.figures == undisturbed.figures
    assert (resumed.steps, resumed.tokens, resumed.sources) == (
        undisturbed.steps,
        undisturbed.tokens,
        undisturbed.sources,
    )
