"""Trainings that do not fit into memory are refused before they start, with a sentence that says what to lower."""

from pathlib import Path

import pytest
import torch
from fixtures_training import make_recipe, run

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.training import TrainingError, memory

SPEC = dictionary(variant="batch_topk", num_latents=1000, k=8)
TRAINING = TrainingSpec(batch_size=100, buffer_tokens=10_000)


def test_bytes_by_hand():
    assert memory.needed(SPEC, TRAINING, (30, 20), "cpu") == {
        "the threshold's sample, tokens:": 4 * 32_768 * 50,  # 6 553 600
        # Weights, two moments and gradients of encoder and decoder; 60 bytes a latent.
        "crosscoder.num_latents": 4 * 8 * 1000 * 50 + 60 * 1000,  # 1 660 000
        # 1.25 codes, 22 bytes an entry where all are looked at, batches as they are drawn, and active entries.
        "training.batch_size": 5 * 100_000 + 22 * 100_000 + 8 * 100 * 50 + 200 * 100 * 8,  # 2 900 000
        "training.buffer_tokens": 4 * 10_000 * 50,  # 2 000 000
        "activations on their way and work space, tokens:": 3 * 65_536 * 4 * 50 + 80 * 8192 * 30 + (4 << 20),
        "a checkpoint's copy, copies:": 3 * 4 * (2 * 1000 * 50 + 1050)
        + 8 * 1000
        + 4 * (10_000 + 65_536) * 50
        + 6_553_600,
    }
    on_gpu = memory.needed(SPEC, TrainingSpec(batch_size=100, dtype="bfloat16"), (30, 20), "cuda")
    assert on_gpu["crosscoder.num_latents"] == 3.5 * 8 * 1000 * 50 + 60 * 1000
    assert on_gpu["activations on their way and work space, tokens:"] == 5 * 262_144 * 50 + 80 * 8192 * 30 + (100 << 20)


def test_the_difference_is_read_from_the_activations_of_both_models():
    spec = dictionary(variant="diff_sae", num_latents=1000, k=8)
    parts = memory.needed(spec, TRAINING, (50, 50), "cpu")
    assert parts["training.buffer_tokens"] == 4 * 10_000 * 100
    assert parts["crosscoder.num_latents"] == 4 * 8 * 1000 * 50 + 60 * 1000


@pytest.mark.parametrize(
    ("free", "says"),
    [
        (76_290_304, None),  # without the checkpoint's copy
        (75_290_304, "76.3 MB of memory .* 75.3 MB are free; lower training.buffer_tokens to 5000$"),
        (2_460_000, "lower crosscoder.num_latents to about 16, or use more devices"),
    ],
)
def test_what_to_lower(free: int, says: str | None):
    parts = memory.needed(SPEC, TRAINING, (30, 20), "cpu")
    found = memory.shortage(parts, memory.values_of(SPEC, TRAINING), free)
    if says is None:
        assert found is None
    else:
        with pytest.raises(MemoryError, match=says):
            raise MemoryError(found)


def test_a_batch_that_is_too_large():
    training = TrainingSpec(batch_size=10_000, buffer_tokens=20_000)
    parts, values = memory.needed(SPEC, training, (30, 20), "cpu"), memory.values_of(SPEC, training)
    rest = sum(parts.values()) - parts["a checkpoint's copy, copies:"] - parts["training.batch_size"]
    found = memory.shortage(parts, values, rest + parts["training.batch_size"] // 2)
    assert found is not None
    assert found.endswith(("lower training.batch_size to 5000", "lower training.batch_size to 4900"))


def test_a_buffer_is_never_lowered_below_two_batches():
    training = TrainingSpec(batch_size=10_000, buffer_tokens=1000)
    values = memory.values_of(SPEC, training)
    assert values["training.buffer_tokens"] == 20_000
    fields = memory.needed(dictionary(variant="l1", num_latents=1000, mu=0.1), training, (30, 20), "cpu")
    found = memory.shortage(dict.fromkeys(fields, 3000000), values, 11_000_000)
    assert found is not None
    assert found.endswith("lower training.batch_size to 6600")
    sizes = {"crosscoder.num_latents": 1, "training.batch_size": 1, "training.buffer_tokens": 2}
    assert "lower training.batch_size to 5000, or use" in memory.ran_out(sizes, values)


def test_cached_files_of_a_container_count_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    machine = memory.free_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nfile 700\nactive_file 300\ninactive_file 250\n")
    assert memory.free_bytes(torch.device("cpu")) == 1000 - 900 + 300 + 250
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) == pytest.approx(machine, rel=0.2)


def test_the_machine_says_what_is_free():
    free = memory.free_bytes(torch.device("cpu"))
    assert free > 100_000_000


def test_a_training_that_cannot_fit_does_not_start(tmp_path: Path):
    spec = {"variant": "l1", "num_latents": 2_000_000_000, "mu": 0.1}
    with pytest.raises(TrainingError, match=r"needs about 3857.6 GB .*; lower crosscoder.num_latents to about"):
        run(make_recipe(spec), tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=["device", "driver", "library", "python"],
)
def test_an_error_of_memory_in_the_middle_names_what_to_lower(tmp_path: Path, error: Exception):
    def run_out(*_: object, step: int = 0, **__: object) -> None:
        if step == 3:
            raise error

    with pytest.raises(TrainingError, match=r"^memory ran out; .* lower training.batch_size to 32, or use a machine"):
        run(make_recipe({"variant": "batch_topk", "num_latents": 512, "k": 2}), tmp_path, progress=run_out)


def test_other_errors_are_unchanged(tmp_path: Path):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel failed")

    with pytest.raises(RuntimeError, match="a kernel failed"):
        run(make_recipe(), tmp_path, progress=fail)
