"""Checkpoints are written beside the training: what is written, what is waited for, and where errors go."""

import errno
import threading
import time
from pathlib import Path

import pytest
import torch
from fixtures_training import make_recipe, run
from fixtures_waiting import PATIENCE_S
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from crosscope_worker.training import checkpoint_writer
from crosscope_worker.training.checkpoint import (
    ONE,
    Checkpoint,
    Group,
    Saved,
    StreamState,
    load_checkpoint,
    save_checkpoint,
)
from crosscope_worker.training.checkpoint_writer import CheckpointWriter
from crosscope_worker.training.tensor_file import PIECE_BYTES, write_tensors
from crosscope_worker.training.trainer import Trainer
from tests.worker.devices import needs_gpu


def checkpoint(step: int, **tensors: Tensor) -> Checkpoint:
    return Checkpoint(step, tensors, recipe={}, counters={}, streams={})


def everything(saved: Saved) -> dict[str, Tensor]:
    return saved.tensors(frozenset(), slice(0, 0))


def test_a_file_is_read_as_it_was_written(tmp_path: Path):
    wide = torch.randn(PIECE_BYTES // 8 + 5, 3)
    tensors = {
        "of": torch.tensor([3, 1], dtype=torch.uint8),
        "wide": wide.T,  # not contiguous
        "none": torch.empty(0, 0),
        "one": torch.tensor(1.5),
        "long": torch.tensor([2**40]),
        "half": torch.tensor([[1.5, -2]], dtype=torch.bfloat16),
    }
    write_tensors(tensors, tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.get_slice("wide").get_shape() == [3, PIECE_BYTES // 8 + 5]


class Slow:
    """`save_checkpoint` that begins when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self, folder: Path, what: Checkpoint, group: Group) -> None:
        self.threads.append(threading.current_thread())
        assert self.go.wait(PATIENCE_S)
        save_checkpoint(folder, what, group)


def test_what_is_written_is_the_state_at_that_step(tmp_path: Path):
    slow, weights, tokens, state = Slow(), torch.ones(5), torch.ones(3), [1]
    with CheckpointWriter(tmp_path, print, write=slow) as writer:
        writer.save(
            Checkpoint(
                1, {"w": weights}, recipe={}, counters={}, streams={0: StreamState({"t": tokens}, {"read": state})}
            )
        )
        weights.fill_(7)
        tokens.fill_(7)
        state.append(2)
        assert not list(tmp_path.iterdir())
        slow.go.set()
    found = load_checkpoint(tmp_path, {})
    assert found is not None
    assert everything(found)["w"].tolist() == [1] * 5
    assert found.stream(0).tensors["t"].tolist() == [1] * 3
    assert found.stream(0).source == {"read": [1]}
    assert threading.main_thread() not in slow.threads


def test_tensors_that_grow_and_shrink(tmp_path: Path):
    with CheckpointWriter(tmp_path, print) as writer:
        for step, size in enumerate((3, 8, 2, 0)):
            writer.save(checkpoint(step, w=torch.full((size, 2), float(step))))
            writer._wait()
            found = load_checkpoint(tmp_path, {})
            assert found is not None
            assert torch.equal(everything(found)["w"], torch.full((size, 2), float(step)))
    assert not writer._held


def test_a_second_checkpoint_waits_for_the_first_and_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint_writer, "_WORTH_SAYING_S", 0.0)
    slow, said = Slow(), list[str]()
    with CheckpointWriter(tmp_path, said.append, write=slow) as writer:
        writer.save(checkpoint(1, w=torch.ones(1)))
        threading.Timer(0.1, slow.go.set).start()
        writer.save(checkpoint(2, w=torch.ones(1)))
        assert len(slow.threads) >= 1
        assert not slow.threads[0].is_alive()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]
    (sentence,) = said
    assert sentence.startswith("waited 0.")
    assert sentence.endswith("s until the checkpoint of step 1 was written")


def full(_folder: Path, _what: Checkpoint, _group: Group) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("by", ["check", "save", "end"])
def test_an_error_of_the_thread_is_raised_by_whatever_comes_next(tmp_path: Path, by: str):
    def work() -> None:
        with CheckpointWriter(tmp_path, print, write=full) as writer:
            writer.save(checkpoint(1, w=torch.ones(1)))
            if by != "end":
                writer._wait()
                writer.check() if by == "check" else writer.save(checkpoint(2, w=torch.ones(1)))
                raise AssertionError("the error was lost")

    with pytest.raises(OSError, match="No space left"):
        work()


def test_a_training_that_fails_waits_for_its_checkpoint_and_keeps_its_own_error(tmp_path: Path):
    slow = Slow()
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(tmp_path, print, write=slow) as writer:  # noqa: PT012
        writer.save(checkpoint(1, w=torch.ones(1)))
        threading.Timer(0.05, slow.go.set).start()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    with pytest.raises(KeyboardInterrupt) as found, CheckpointWriter(tmp_path, print, write=full) as writer:  # noqa: PT012
        writer.save(checkpoint(2, w=torch.ones(1)))
        raise KeyboardInterrupt
    assert "step 2 could not be written either: " in found.value.__notes__[0]


def test_without_room_for_a_copy_the_training_waits_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint_writer, "room_beside", lambda _: 4_000_000)
    slow, said = Slow(), list[str]()
    slow.go.set()
    with CheckpointWriter(tmp_path, said.append, write=slow) as writer:
        for step in (1, 2):
            writer.save(checkpoint(step, w=torch.zeros(1_000_000)))
            assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:09d}"]
    assert slow.threads == 2 * [threading.main_thread()]
    assert said == [
        "a copy of the checkpoint takes 0.0 GB and 0.0 GB are free: training waits while checkpoints are written"
    ]


def test_a_full_disk_ends_a_training_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CheckpointWriter.__init__, "__defaults__", (ONE, full))
    steps: list[int] = []

    def tell(*_: object, step: int = 0, **__: object) -> None:
        steps.append(step)
        time.sleep(0.05 if step > 4 else 0)

    with pytest.raises(OSError, match="No space left"):
        run(make_recipe(checkpoint_every=4), tmp_path, progress=tell)
    assert max(steps) <= 6


@pytest.mark.gpu
@needs_gpu
def test_a_state_on_the_gpu_is_written_as_it_was_while_training_goes_on(tmp_path: Path):
    recipe = make_recipe({"variant": "batch_topk", "num_latents": 4096, "k": 8})
    trainer = Trainer(recipe.crosscoder, recipe.training, (256, 256), "cuda")
    x = torch.randn(64, 512, device="cuda")
    with torch.no_grad():
        trainer.step(x, 1e-2)
        before = {name: tensor.cpu().clone() for name, tensor in trainer.tensors().items()}
        with CheckpointWriter(tmp_path, print) as writer:
            writer.save(checkpoint(1, **trainer.tensors()))
            for _ in range(20):
                trainer.step(x, 1e-2)
    found = load_checkpoint(tmp_path, {})
    assert found is not None
    for name, tensor in before.items():
        assert torch.equal(everything(found)[name], tensor), name
