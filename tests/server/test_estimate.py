"""Plans on devices, worked out by hand and held against what was measured there."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from crosscope_proto import rates
from crosscope_proto.job_record import WorkerNote
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_proto.training_memory import COPY, needed
from crosscope_server.jobs.check import check
from crosscope_server.jobs.estimate import Amounts, DevicePlan, Target, memory_of, on_device, token_flops
from crosscope_server.jobs.hub import KNOWN, cached_model
from crosscope_server.jobs.inputs import Model
from crosscope_server.jobs.plan import Planned, plan
from crosscope_server.jobs.planning import named_target, targets_of

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def original() -> CrosscoderRecipe:
    recipe = parse_recipe((RECIPES / "gemma-2-2b.yaml").read_text())
    assert isinstance(recipe, CrosscoderRecipe)
    return recipe


def planned(recipe: CrosscoderRecipe, home: Path, *targets: Target) -> Planned:
    return plan(recipe, check(recipe, home), home, targets)


def times(device: DevicePlan) -> dict[str, float | None]:
    return {entry.name: entry.value for entry in device.times}


def test_the_original_run_on_an_h100_takes_what_was_measured(tmp_path: Path) -> None:
    found = planned(original(), tmp_path, named_target("h100"))
    amounts = {entry.name: entry.value for entry in found.entries}
    assert amounts["training tokens"] == 200_000_000
    assert amounts["steps"] == 97_657
    assert amounts["models"] == 2 * 5_228_683_776
    (device,) = found.devices
    # Two models of 26 layers with 77.87 million weights each, to layer 13: 4.36 GFLOP a token, 93 230 tokens a second
    # beside the tokenizer. A step: 1.39 TFLOP at 773 TFLOP/s and 679 million weights of 19 ps, 14.7 ms.
    assert times(device)["training"] == pytest.approx(200e6 / 93_230 + 97_657 * 0.014675, rel=0.02)
    # 5 million tokens, read at 93 230 a second and analysed at 42 600, and 5.94 s.
    assert times(device)["analysis"] == pytest.approx(5e6 * (1 / 93_230 + 1 / 42_601) + 5.94, rel=0.02)
    assert times(device)["whole job"] == sum(value or 0 for name, value in times(device).items() if name != "whole job")
    assert device.fits is True
    assert [(each.field, each.size_bytes, each.gated) for each in found.downloads] == [
        ("pair.base", 5_228_683_776, True),
        ("pair.chat", 5_228_683_776, True),
        ("data.0.path", None, None),
        ("data.1.path", None, True),
    ]


def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    recipe = original()
    small = Target("small", None, 1, torch_device="cuda:0")
    parts = needed(recipe.crosscoder, recipe.training, (2304, 2304), "cuda")
    parts.pop(COPY)  # not taken where there is no room
    assert memory_of(recipe, amounts_of(recipe), small) == {"both models": 2 * 5_228_683_776, **parts}
    need = 2 * 5_228_683_776 + sum(parts.values())
    buffer = parts["training.buffer_tokens"]
    short = dataclasses.replace(small, memory_bytes=need - buffer // 3)  # half the buffer makes room
    device = planned(recipe, tmp_path, short).devices[0]
    assert device.fits is False
    assert device.ways_out[0] == f"training.buffer_tokens {recipe.training.buffer_tokens // 2} would fit"
    assert device.ways_out[-1] == "it fits on h100 (NVIDIA H100 80GB)"
    half = dataclasses.replace(recipe.training, buffer_tokens=recipe.training.buffer_tokens // 2)
    assert planned(dataclasses.replace(recipe, training=half), tmp_path, short).devices[0].fits is True
    hopeless = planned(recipe, tmp_path, Target("tiny", None, 1000)).devices[0]
    assert hopeless.ways_out == ["it fits on h100 (NVIDIA H100 80GB)"]


def on(recipe: CrosscoderRecipe, devices: int | Literal["auto"], streams: int | None = None) -> CrosscoderRecipe:
    training = dataclasses.replace(recipe.training, devices=devices, streams=streams)
    return dataclasses.replace(recipe, training=training)


def test_several_devices_share_latents_and_streams(tmp_path: Path) -> None:
    recipe, h100 = original(), named_target("h100")
    (one,), (four,) = (planned(on(recipe, number), tmp_path, h100).devices for number in (1, 4))
    assert (one.name, four.name) == ("h100", "4 × h100")
    memory = [{entry.name: entry.value or 0 for entry in each.memory} for each in (one, four)]
    assert memory[1]["both models"] == memory[0]["both models"], "each has both whole"
    assert memory[1]["crosscoder.num_latents"] == memory[0]["crosscoder.num_latents"] / 4
    assert memory[1]["training.buffer_tokens"] == memory[0]["training.buffer_tokens"] / 4
    batch = "training.batch_size"
    assert memory[0][batch] / 4 < memory[1][batch] < memory[0][batch], "inputs are whole, codes are a part"
    # Both models are read by all four, and each step's products and weights are a fourth.
    assert times(four)["training"] == pytest.approx((200e6 / 93_230 + 97_657 * 0.014675) / 4, rel=0.02)
    assert "what these send each other is not in it" in four.times[0].note
    found = planned(on(recipe, 4, streams=2), tmp_path, h100)
    helps = "training.devices 4: 2 of them read no texts, as there are training.streams 2, and only help with latents"
    assert helps in found.warnings
    in_vain = (
        "data set 'fineweb' is read in 2 streams: each reads its own files if they are Parquet and at least 2; else "
        "each reads all of it, and 50% of that in vain"
    )
    assert in_vain in found.warnings
    assert not any("in vain" in each for each in planned(on(recipe, 1), tmp_path, h100).warnings)
    (two_read,) = found.devices
    assert times(two_read)["training"] == pytest.approx(200e6 / 93_230 / 2 + 97_657 * 0.014675 / 4, rel=0.02)
    assert "4 devices, of which 2 read texts" in two_read.times[0].note


def test_the_smallest_number_of_devices_that_fits_is_a_way_out(tmp_path: Path) -> None:
    recipe, amounts = original(), amounts_of(original())

    def needs(number: int) -> int:
        return sum(memory_of(on(recipe, number), amounts, Target("gpu", None, None, None, "cuda")).values())

    assert needs(1) > needs(2) > needs(3)
    gpu = Target("gpu", None, needs(3), None, "cuda", 4)
    (device,) = planned(recipe, tmp_path, gpu).devices
    assert device.fits is False
    assert "training.devices 3 would fit" in device.ways_out
    (all_four,) = planned(on(recipe, "auto"), tmp_path, gpu).devices
    assert (all_four.name, all_four.fits, all_four.ways_out) == ("4 × gpu", True, [])
    (eight,) = planned(on(recipe, 8), tmp_path, gpu).devices
    assert (eight.fits, eight.ways_out[0]) == (False, "training.devices 4 is all that there are")
    (fewer,) = planned(recipe, tmp_path, dataclasses.replace(gpu, num_devices=2)).devices
    assert not any("training.devices" in way for way in fewer.ways_out)
    cpu = Target("2 CPU cores", None, None, None, "cpu")
    models = [memory_of(on(recipe, number), amounts, cpu)["both models"] for number in (1, 2)]
    assert models[1] == 2 * models[0], "processes on the CPU share its memory"


def amounts_of(recipe: CrosscoderRecipe) -> Amounts:
    models: dict[str, Model] = dict.fromkeys(("base", "chat"), KNOWN["google/gemma-2-2b"])
    return Amounts(models, (2304, 2304), 1, 1, 1)


def test_what_is_unknown_says_why() -> None:
    recipe = original()
    strange = on_device(recipe, amounts_of(recipe), Target("NVIDIA A100", None), None)
    assert strange.fits is None
    assert set(times(strange).values()) == {None}
    assert "no rates were measured on NVIDIA A100" in strange.times[0].note
    blind = on_device(recipe, Amounts(tokens=1, steps=1), Target("h100", rates.DEVICES[0], 1), None)
    assert (blind.memory, blind.fits) == ([], None)
    assert "not known before they are loaded" in blind.times[0].note
    endless = on_device(recipe, Amounts(), Target("h100", rates.DEVICES[0], 1), None)
    assert endless.times[0].note.startswith("the length of the training is not known")


def test_operations_of_a_model_leave_out_its_embeddings() -> None:
    # 4 layers of 1 000 weights, and 10 · 8 of embeddings, twice where the head is apart; float32.
    tied = Model(4, 8, 4 * (4000 + 80), "float32", 10)
    apart = Model(4, 8, 4 * (4000 + 160), "float32", 10, is_tied=False)
    assert (tied.layer_parameters, apart.layer_parameters) == (1000, 1000)
    recipe = dataclasses.replace(original(), layer=2)
    assert token_flops(recipe, {"base": tied, "chat": apart}) == 2 * (1000 + 1000) * 3
    assert token_flops(recipe, {"base": tied}) is None
    assert Model(4, 8, 4000, "float32").layer_parameters is None


@pytest.mark.parametrize(
    ("name", "known"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("2 CPU cores", "cpu"), ("1 CPU core", "cpu"), ("NVIDIA A100", None)],
)
def test_devices_of_workers_are_found_in_the_table(name: str, known: str | None) -> None:
    (target,) = targets_of([WorkerNote(0, "cpu", name, 8, 3), WorkerNote(0, "cpu", name, 8, 5)])
    assert (target.free_bytes, target.rates and target.rates.name) == (5, known)


def test_a_model_in_the_hubs_cache_is_read_and_not_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--google--gemma-2-2b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc\n")
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert cached_model("google/gemma-2-2b") is None
    (snapshot / "config.json").write_text('{"num_hidden_layers": 26, "hidden_size": 2304, "vocab_size": 256000}')
    (snapshot / "model.safetensors").write_bytes(bytes(400))
    found = planned(original(), tmp_path, named_target("h100"))
    assert [each.field for each in found.downloads] == ["pair.chat", "data.0.path", "data.1.path"]
    assert cached_model("google/gemma-2-2b", "other") is None
