"""Every field of a recipe that decides a training changes its outcome."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_training import PlantedSource, drawn, make_recipe, run
from safetensors.torch import load_file
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import DataSpec, TokenPolicy, TrainingSpec
from crosscope_worker.data.harvest_source import HarvestSource, open_sources
from crosscope_worker.data.texts import DataError, TextStream
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.phases import Following
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.training import train
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.training.start import initial_weights
from crosscope_worker.training.variants import variant_of
from crosscope_worker.work import silent

SPARSE = {"variant": "batch_topk", "num_latents": 24, "k": 1}
TRAINING: dict[str, Any] = {
    "decay_share": 0.5,
    "sparsity_warmup_steps": 20,
    "k_start": 8,
    "dead_after_tokens": 200,
    "checkpoint_every": 40,
    "max_steps": 50,
}
CHANGES: dict[str, Any] = {
    "batch_size": 48,
    "lr": 2e-3,
    "warmup_steps": 9,
    "decay_share": 0.25,
    "decay": "cosine",
    "sparsity_warmup_steps": 12,
    "k_start": 12,
    "max_steps": 45,
    "buffer_tokens": 1024,
    "normalise_inputs": True,
    "max_grad_norm": 0.1,
    "dead_after_tokens": 400,
    "aux_weight": 0.5,
    "dtype": "bfloat16",
    "seed": 1,
    "log_every": 7,
    "checkpoint_every": 30,
}
OF_A_SOURCE = {"epochs", "cache", "streams"}
"""Fields of TrainingSpec that a planted source knows nothing of."""
NO_RESULT = {"devices"}
"""Fields of TrainingSpec that change no result (test_ranks.py)."""


def outcome(folder: Path, **training: Any) -> tuple[list[bytes], list[Any], list[str]]:
    """Weights and threshold, curves without the speed, and names of checkpoints."""
    result = run(make_recipe(SPARSE, **TRAINING | training), folder)
    crosscoder = result.crosscoder
    weights = [crosscoder.W_enc, crosscoder.b_enc, crosscoder.W_dec, crosscoder.b_dec]
    curves = [row for row in result.curves if row[1] != "tokens_per_second"]
    return [each.numpy().tobytes() for each in weights], curves, sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[Any], list[str]]:
    return outcome(tmp_path_factory.mktemp("unchanged"))


def test_every_field_of_a_training_is_looked_at():
    assert CHANGES.keys() | OF_A_SOURCE | NO_RESULT == {field.name for field in fields(TrainingSpec)}


def test_the_same_training_again_gives_the_same(tmp_path: Path, unchanged: tuple[Any, ...]):
    assert outcome(tmp_path) == unchanged


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_changes_a_training(tmp_path: Path, unchanged: tuple[Any, ...], name: str):
    weights, curves, checkpoints = outcome(tmp_path, **{name: CHANGES[name]})
    assert (weights != unchanged[0]) == (name not in ("log_every", "checkpoint_every"))
    assert (checkpoints != unchanged[2]) == (name == "max_steps")  # the last one is that of the end
    assert (curves != unchanged[1]) == (name != "checkpoint_every")


@pytest.mark.parametrize(("every", "newest"), [(7, "step-000000028"), (10, "step-000000030")])
def test_checkpoints_come_as_often_as_the_recipe_says(tmp_path: Path, every: int, newest: str):
    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 31:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_recipe(checkpoint_every=every), tmp_path, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [newest]


def test_the_buffer_holds_as_many_tokens_as_the_recipe_says(tmp_path: Path):
    for tokens, blocks in ((512, 6), (1000, 10), (4000, 40)):
        read: list[int] = []
        source = PlantedSource()

        def note(*_: Any, source: PlantedSource = source, read: list[int] = read, **__: Any) -> None:
            read.append(source.next)

        run(make_recipe(buffer_tokens=tokens), tmp_path / str(tokens), source, note)
        assert read[0] == blocks


def test_a_seed_decides_the_first_weights_and_the_order_of_the_tokens(tmp_path: Path):
    variant = variant_of(dictionary(**SPARSE), (8, 8))
    first, again, other = (initial_weights(variant, seed, "cpu").decoder for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()

    def order(seed: int) -> list[float]:
        blocks = iter(torch.arange(100.0)[:, None].split(10))
        return torch.cat(list(drawn(ShuffleBuffer(blocks, 50, 10, seed), 10))).squeeze(1).tolist()

    assert order(0) == order(0) != order(1)
    # What waits in the buffer does not depend on weights, only on what was drawn before.
    waiting = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(waiting))
        run(make_recipe(SPARSE, seed=seed, max_steps=4, checkpoint_every=4), folder)
        waiting.append(load_file(folder / "step-000000004" / "stream-0.safetensors")["tokens"])
    assert torch.equal(waiting[0], waiting[1])
    assert not torch.equal(waiting[0], waiting[2])


class TwoColumns:
    """Five tokens of two models with one dimension each; three of five are the same, so they are the median."""

    def blocks(self) -> Iterator[Tensor]:
        yield torch.tensor([[7.0, -2.0], [7.0, 50.0], [0.0, -2.0], [7.0, -2.0], [100.0, 9.0]])

    def fraction(self) -> float:
        return 1.0

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("spec", "bias"),
    [(SPARSE, [7.0, -2.0]), ({"variant": "l1", "num_latents": 24, "mu": 0.1}, [0.0, 0.0])],
    ids=["k", "mu"],
)
def test_the_decoders_bias_starts_at_the_median_where_there_is_a_k(tmp_path: Path, spec: dict[str, Any], bias: Any):
    recipe = make_recipe(spec, lr=1e-30, batch_size=5)
    with torch.no_grad():
        found = train(recipe, [TwoColumns()], (1, 1), tmp_path, silent).crosscoder.b_dec
    assert found.tolist() == pytest.approx(bias, abs=1e-3)


@pytest.mark.parametrize("normalisation", ["crosscoder", "sae", "mixed", "none"])
def test_a_trained_dictionary_scales_its_code_as_the_recipe_says(tmp_path: Path, normalisation: str):
    spec = SPARSE | {"code_normalisation": normalisation}
    crosscoder = run(make_recipe(spec, max_steps=20), tmp_path).crosscoder
    base, chat = (crosscoder.decoder(model).double().norm(dim=1) for model in (0, 1))
    both = (base**2 + chat**2) ** 0.5
    norms = {"crosscoder": base + chat, "sae": both, "mixed": both + 0.1 * (base + chat), "none": torch.ones(24)}
    torch.testing.assert_close(crosscoder.code_norms().double(), norms[normalisation].double(), rtol=1e-5, atol=0)
    assert crosscoder.variant == "batch_topk"
    assert crosscoder.num_latents == 24


@pytest.fixture
def harvested(tiny_pair: Pair, tmp_path: Path) -> Any:
    """The activations that a training reads from 20 texts of 4 to 13 tokens, BOS included, by token policy and other
    changes.
    """
    random = np.random.default_rng(0)
    words = ["the", "red", "fox", "old", "river", "bread"]
    lines = [" ".join(random.choice(words, size=3 + i // 2)) for i in range(20)]
    (tmp_path / "a.txt").write_text("".join(f"{line}\n" for line in lines))

    def read(layer: int = 1, epochs: int = 1, **tokens: Any) -> Tensor:
        recipe = replace(
            make_recipe(epochs=epochs),
            data=(DataSpec(name="a", source="text", path="a.txt"),),
            tokens=TokenPolicy(**{"held_out_every": 10} | tokens),
            layer=layer,
        )
        stream = TextStream(recipe.data, TextTokenizer(tiny_pair.tokenizer), recipe.tokens, [tmp_path], "train")
        (source,) = open_sources(
            recipe,
            [stream],
            PairActivations(tiny_pair, layer),
            tmp_path,
            {},
            lambda _: None,
            Following(silent, "train"),
        )
        assert isinstance(source, HarvestSource)
        return torch.cat(list(source.blocks()))

    return read


def test_the_token_policy_and_epochs_decide_what_a_training_reads(harvested: Any):
    every = harvested()
    lengths = [len(harvested(skip_first=n)) for n in (1, 2, 4)]
    assert lengths[0] == len(every) == lengths[1] + 18, "BOS counts as the first, and is left out anyway"
    assert lengths[2] == len(every) - 3 * 18
    assert len(harvested(skip_bos=False)) == len(every) + 18
    assert len(harvested(max_length=3)) == 2 * 18
    assert len(harvested(held_out_every=2)) < 0.6 * len(every)
    assert len(harvested(epochs=3)) == 3 * len(every)
    norms = [part.norm(dim=1) for part in every.split(32, dim=1)]
    stay = (norms[0] <= 1.1 * norms[0].median()) & (norms[1] <= 1.1 * norms[1].median())
    assert 0 < stay.sum() < len(every)
    torch.testing.assert_close(harvested(max_norm_ratio=1.1), every[stay])


def test_the_layer_decides_what_a_training_reads(harvested: Any):
    first, second = harvested(layer=1), harvested(layer=2)
    assert first.shape == second.shape
    assert not torch.isclose(first, second).all(dim=1).any()


def write_data(folder: Path) -> None:
    """Two files of the same shape, and a folder of the hub's layout with two configurations and splits."""
    for name, word in (("a", "fox"), ("b", "river")):
        turns = [{"role": "user", "content": f"the {word}"}, {"role": "assistant", "content": "no"}]
        row = {
            "turns": turns,
            "text": f"the {word}",
            "other": [{"role": "user", "content": "bread"}],
            "keys": [{"role": "user", "who": "user", "content": "one", "what": "two"}],
            "share": [{"from": "human", "value": "two"}],
            "tags": [{"turn": 1, "start": 0, "end": 2, "behaviour": "refusal"}],
        }
        empty = row | {"turns": [{"role": "user", "content": " "}]}
        rows = [*3 * [row], empty, *8 * [row]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        for split in ("train", "test"):
            (folder / "hub" / name).mkdir(parents=True, exist_ok=True)
            text = json.dumps({"text": f"{name} {split}"}) + "\n"
            (folder / "hub" / name / f"{split}.jsonl").write_text(12 * text)
    files = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}.jsonl\n" for split in ("train", "test"))
        for name in ("a", "b")
    )
    (folder / "hub" / "README.md").write_text(f"---\nconfigs:\n{files}---\n")


CHATS: dict[str, Any] = {
    "name": "a",
    "source": "jsonl",
    "path": "a.jsonl",
    "chat_column": "turns",
    "behaviours_column": "tags",
    "skip_refused": True,
}
KEYS = CHATS | {"chat_column": "keys", "behaviours_column": None}
OF_THE_HUB: dict[str, Any] = {"name": "a", "source": "hub", "path": "hub", "config": "a", "text_column": "text"}
DATA_CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "source": (CHATS, {"source": "text", "chat_column": None, "behaviours_column": None}),
    "path": (CHATS, {"path": "b.jsonl"}),
    "config": (OF_THE_HUB, {"config": "b"}),
    "split": (OF_THE_HUB, {"split": "test"}),
    "text_column": (CHATS, {"text_column": "text", "chat_column": None, "behaviours_column": None}),
    "chat_column": (CHATS, {"chat_column": "other", "behaviours_column": None}),
    "format": (KEYS | {"chat_column": "share"}, {"format": "sharegpt"}),
    "role_key": (KEYS, {"role_key": "missing"}),
    "content_key": (KEYS, {"content_key": "what"}),
    "behaviours_column": (CHATS, {"behaviours_column": None}),
    "skip_refused": (CHATS, {"skip_refused": False}),
    "max_refused_share": (CHATS, {"max_refused_share": 0.01}),
    "max_tokens": (CHATS, {"max_tokens": 40}),
}


def read_texts(folder: Path, pair: Pair, spec: dict[str, Any]) -> Any:
    """Ids and behaviours of the texts, or the reason why there are none."""
    path = str(folder / "hub") if spec["source"] == "hub" else spec["path"]
    tokenizer, policy = TextTokenizer(pair.tokenizer), TokenPolicy(held_out_every=10)
    try:
        stream = TextStream([DataSpec(**spec | {"path": path})], tokenizer, policy, [folder], "train")
        return [(text.ids.tolist(), text.behaviours) for text in stream]
    except DataError as error:
        return str(error)


def test_every_field_of_a_data_set_is_looked_at():
    assert DATA_CHANGES.keys() | {"name"} == {field.name for field in fields(DataSpec)}


@pytest.mark.parametrize("name", DATA_CHANGES)
def test_a_field_changes_what_is_read_of_a_data_set(tmp_path: Path, tiny_pair: Pair, name: str):
    spec, change = DATA_CHANGES[name]
    write_data(tmp_path)
    before, after = (read_texts(tmp_path, tiny_pair, each) for each in (spec, spec | change))
    assert before != after
    assert read_texts(tmp_path, tiny_pair, spec) == before
