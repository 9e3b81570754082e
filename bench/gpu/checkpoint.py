"""How long training stands still for a checkpoint of the original run, what the disk takes, and whether it resumes.

    python -m bench.gpu.checkpoint [--dry] [--out FILE]

The whole state is copied, weights, optimiser and a full shuffle buffer. What is written has a part of the buffer only,
so that the disk holds the section up no longer than it must.
"""

import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu.rows import Run, main
from crosscope_proto.dictionaries import BatchTopK
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.training.checkpoint import Checkpoint, Group, load_checkpoint, save_checkpoint
from crosscope_worker.training.checkpoint_writer import CheckpointWriter
from crosscope_worker.training.trainer import Trainer

LR = 1e-4
BUFFER = "buffer.tokens"
WRITTEN_TOKENS = 32_768
"""Tokens of the buffer that are written."""


def rows(run: Run) -> None:
    """All rows of the section."""
    with tempfile.TemporaryDirectory(prefix="crosscope-") as folder, torch.no_grad():
        run.part("checkpoint", lambda: _measure(run, Path(folder)), limit_s=58)


@dataclass(frozen=True, eq=False)
class _After:
    """A step after the checkpoint that is written, and what the checkpoint must hold."""

    loss: float
    decoder: Tensor
    saved: dict[str, Tensor]


def _measure(run: Run, folder: Path) -> None:
    sizes = run.sizes
    spec = BatchTopK(num_latents=sizes.num_latents, k=sizes.k)
    training = TrainingSpec(batch_size=sizes.batch, dtype="bfloat16")
    trainer = Trainer(spec, training, (sizes.d_model, sizes.d_model), run.device)
    x = torch.randn(sizes.batch, 2 * sizes.d_model, device=run.device)
    for _ in range(3):
        trainer.step(x, LR)
    after = _written(run, folder, trainer, x, 16 * sizes.batch if run.dry else training.buffer_tokens)
    run.free()
    took, found = run.wall(lambda: load_checkpoint(folder, {}))
    assert found is not None
    took_tensors, tensors = run.wall(lambda: found.tensors(trainer.per_latent(), trainer.latents))
    same = all(torch.equal(tensors[name], tensor) for name, tensor in after.saved.items())
    trainer.restore(tensors, found.counters)
    resumed = trainer.step(x, LR)
    differs = float((trainer.weights.decoder - after.decoder).abs().max())
    wrong = (not same) + (resumed.loss != after.loss) + (differs != 0)
    run.row(
        "checkpoint.differs",
        wrong,
        "figures",
        loss=[after.loss, resumed.loss],
        decoder=differs,
        load_s=took + took_tensors,
    )


def _written(run: Run, folder: Path, trainer: Trainer, x: Tensor, buffer_tokens: int) -> _After:
    """Copies the state twice, the second time also writes it, and trains on meanwhile."""
    buffer = torch.randn(buffer_tokens, x.shape[1], device=run.device)
    said: list[str] = []
    written: list[float] = []

    def state() -> Checkpoint:
        tensors = {**trainer.tensors(), BUFFER: buffer}
        return Checkpoint(trainer.counters.step, tensors, {}, asdict(trainer.counters), {}, trainer.per_latent())

    def write(folder: Path, whole: Checkpoint, group: Group) -> None:
        if whole.step == first_step:
            return  # the copy alone
        began = time.perf_counter()
        part = {BUFFER: whole.tensors[BUFFER][:WRITTEN_TOKENS]}
        save_checkpoint(folder, replace(whole, tensors=whole.tensors | part), group)
        written.append(time.perf_counter() - began)

    alone = run.timed(lambda: trainer.step(x, LR), rounds=8)
    first_step = trainer.counters.step
    size = sum(tensor.nbytes for tensor in state().tensors.values())
    with CheckpointWriter(folder, said.append, Group([trainer.latents]), write) as writer:
        new, _ = run.wall(lambda: writer.save(state()))
        trainer.step(x, LR)
        saved = {name: tensor.cpu().clone() for name, tensor in _small(trainer.tensors()).items()}
        again, _ = run.wall(lambda: writer.save(state()))
        loss = trainer.step(x, LR).loss
        after = _After(loss, trainer.weights.decoder.clone(), saved)
        beside = run.timed(lambda: trainer.step(x, LR), rounds=30, warm_up=0)
    detail = {"gb": size / 1e9, "said": said}
    run.row("checkpoint.stands_still", max(new, again), "s", first_s=new, later_s=again, **detail)
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    run.row("checkpoint.written", on_disk / 1e9 / written[0], "GB/s", gb=on_disk / 1e9, seconds=written[0])
    run.row("checkpoint.step_beside", beside.median, "ms", alone_ms=alone.median, **beside.detail())
    return after


def _small(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that take no time to compare; the step that follows compares the others."""
    return {name: tensor for name, tensor in tensors.items() if tensor.nbytes < 1 << 24}


if __name__ == "__main__":
    sys.exit(main("checkpoint", rows))
