"""The cache of activations: a training's blocks are the same with and without it, whatever happens to its files."""

import contextlib
import json
import os
import random
import resource
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_worker.data.activation_cache import GRACE_S, ActivationCache, CacheError, CacheFull, Shard, cache_key
from crosscope_worker.data.harvest_source import CachedSource, HarvestSource
from crosscope_worker.data.rows import DataError
from crosscope_worker.data.tally import from_state
from crosscope_worker.data.texts import TextStream
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fingerprints import pair_hashes
from crosscope_worker.models.pair import Pair
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.training import train
from crosscope_worker.work import Workspace, silent

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
UNEVEN, EVEN = 60, 6
"""Tokens of a forward so that an epoch ends within a window, or right at the end of one."""


class Stop(Exception):
    """Stands for anything that ends the process in the middle."""


class Counted(PairActivations):
    """Counts the forwards of both models together."""

    forwards = 0

    def rows(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        self.forwards += 1
        return super().rows(ids, positions)


class Opened:
    """A source over a recipe's texts, and its parts."""

    def __init__(
        self,
        home: Path,
        pair: Pair,
        recipe: CrosscoderRecipe,
        cached: bool,
        tokens_per_forward: int = UNEVEN,
        windows_ahead: int = 0,
    ) -> None:
        self.activations = Counted(pair, recipe.layer)
        self.stream = TextStream(recipe.data, TextTokenizer(pair.tokenizer), recipe.tokens, [home], "train")
        self.told: list[str] = []
        self.harvests = HarvestSource(
            self.stream, self.activations, recipe, tokens_per_forward, windows_ahead=windows_ahead
        )
        key = cache_key(recipe, self.activations, self.stream.files, {"base": "b"}, tokens_per_forward)
        self.activations.forwards = 0  # The key asks whether texts may share rows, which is tried.
        self.cache = ActivationCache(home, key, sum(pair.d_model), tell=self.told.append)
        self.source = CachedSource(self.harvests, self.cache) if cached else self.harvests

    def seen(self) -> Generator[tuple[bytes, float, dict[str, Any]]]:
        """Bytes of each block, and the source's fraction and the models' state after it."""
        for x in self.source.blocks():
            yield x.numpy().tobytes(), self.source.fraction(), self.harvests.state()

    @property
    def num_refused(self) -> int:
        return sum(counts.num_refused for counts in self.stream.counts)

    def shards(self) -> list[Path]:
        return sorted(self.cache.folder.glob("shard-*"))


Open = Callable[..., Opened]


def parse(text: str) -> CrosscoderRecipe:
    recipe = parse_recipe(text)
    assert isinstance(recipe, CrosscoderRecipe)
    return recipe


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Documents; and conversations of which every fourth, the last too, is refused by the template."""
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(["the", "red", "fox", "old", "river", "bread", "not"], k=draw.randint(8, 25)))

    chats = [{"turns": [{"role": "user" if i % 4 != 3 else "assistant", "content": sentence()}]} for i in range(44)]
    rows: dict[str, list[Any]] = {"web.jsonl": [{"text": sentence()} for _ in range(60)], "chat.jsonl": chats}
    for name, values in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in values))
    return tmp_path


@pytest.fixture
def recipe(tiny_pair_folder: Path) -> CrosscoderRecipe:
    return parse(f"""
kind: crosscoder
name: toy
pair: {{name: tiny, base: {tiny_pair_folder / "base"}, chat: {tiny_pair_folder / "chat"}}}
layer: 1
data:
  - {{name: web, source: jsonl, path: web.jsonl, text_column: text}}
  - {{name: chat, source: jsonl, path: chat.jsonl, chat_column: turns, skip_refused: true}}
tokens: {{max_length: 64, held_out_every: 5, max_norm_ratio: 1.1}}
crosscoder: {{variant: batch_topk, num_latents: 32, k: 4}}
training: {{batch_size: 64, lr: 0.003, warmup_steps: 3, epochs: 2, buffer_tokens: 256, log_every: 5,
            checkpoint_every: 3, decay_share: 0.5, cache: true}}
analysis: {{max_tokens: 500, num_shards: 2, top_examples: 2, uselessness_steps: 3}}
""")


@pytest.fixture
def even(recipe: CrosscoderRecipe) -> CrosscoderRecipe:
    """27 training conversations of exactly 16 tokens, three to a window of EVEN; a refused one after the last."""
    tokens = replace(recipe.tokens, max_length=16, max_norm_ratio=None)
    return replace(recipe, data=recipe.data[1:], tokens=tokens)


@pytest.fixture
def opened(home: Path, tiny_pair: Pair) -> Open:
    def open_source(recipe: CrosscoderRecipe, cached: bool = True, size: int = UNEVEN, ahead: int = 0) -> Opened:
        return Opened(home, tiny_pair, recipe, cached, size, ahead)

    return open_source


def trained(one: Opened, recipe: CrosscoderRecipe, folder: Path, progress: Any = silent) -> Crosscoder:
    with torch.no_grad():
        return train(recipe, [one.source], one.activations.d_model, folder, progress).crosscoder


def assert_equal(first: Crosscoder, second: Crosscoder) -> None:
    for name in WEIGHTS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.keep == second.keep


def test_a_training_cannot_tell_whether_it_has_a_cache(opened: Open, recipe: CrosscoderRecipe, home: Path):
    plain, filling, reading = opened(recipe, cached=False), opened(recipe), opened(recipe)
    expected = trained(plain, recipe, home / "plain")
    assert_equal(trained(filling, recipe, home / "filling"), expected)
    assert_equal(trained(reading, recipe, home / "reading"), expected)
    assert plain.activations.forwards == 2 * filling.activations.forwards, "the second epoch reads shards"
    assert reading.activations.forwards == 0
    assert plain.num_refused == filling.num_refused == reading.num_refused == 18
    assert filling.told == reading.told == []


@pytest.mark.parametrize("case", ["ends within a window", "ends with a window"])
def test_blocks_and_states_are_the_same_with_and_without_cache(
    opened: Open, recipe: CrosscoderRecipe, even: CrosscoderRecipe, case: str
):
    recipe, size = (recipe, UNEVEN) if case == "ends within a window" else (even, EVEN)
    plain, filling, reading = opened(recipe, False, size), opened(recipe, True, size), opened(recipe, True, size)
    expected = list(plain.seen())
    per_epoch = len(expected) // 2
    assert [x for x, *_ in expected[:per_epoch]] == [x for x, *_ in expected[per_epoch:]]
    if case == "ends with a window":
        assert per_epoch == 9
        last, first = (state for *_, state in expected[8:10])
        assert (last["epoch"], first["epoch"]) == (0, 1), "the end shows only when more is asked for"
        skipped = [sum(each.num_refused for each in from_state(state["stream"]["counts"])) for state in (last, first)]
        assert skipped == [8, 9], "one was refused behind the last block"
    else:
        assert per_epoch > 3
        state = expected[per_epoch - 1][2]
        assert (state["epoch"], state["num_texts"]) == (1, 0), "the last block comes once the texts have ended"
    for one in (filling, reading):
        assert list(one.seen()) == expected
        assert one.source.fraction() == plain.source.fraction() == 1.0
        assert one.harvests.state() == plain.harvests.state()
        assert one.num_refused == 18
        assert len(one.shards()) == per_epoch
    assert reading.activations.forwards == 0


def reading_ahead() -> bool:
    return any(thread.name == "texts" for thread in threading.enumerate())


@pytest.mark.parametrize("size", [UNEVEN, EVEN])
def test_blocks_and_states_are_the_same_where_texts_are_read_ahead(
    opened: Open, recipe: CrosscoderRecipe, even: CrosscoderRecipe, size: int
):
    recipe = recipe if size == UNEVEN else even
    expected = list(opened(recipe, False, size).seen())
    ahead = opened(recipe, False, size, 2)
    assert list(ahead.seen()) == expected
    assert ahead.num_refused == 18
    assert not reading_ahead()
    for num_given in (1, len(expected) // 2):
        cut, resumed = (opened(recipe, False, size, 2) for _ in range(2))
        seen = cut.seen()
        given = [next(seen) for _ in range(num_given)]
        assert given == expected[:num_given]
        seen.close()
        assert not reading_ahead()
        assert cut.stream.state() == given[-1][2]["stream"], "what was read ahead counts for nothing"
        resumed.source.restore(given[-1][2])
        assert list(resumed.seen()) == expected[num_given:]


def test_a_cut_training_that_reads_ahead_ends_with_the_same_weights(opened: Open, recipe: CrosscoderRecipe, home: Path):
    expected = trained(opened(recipe, cached=False), recipe, home / "plain")

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 11:
            raise Stop

    for cached in (False, True):
        with pytest.raises(Stop):
            trained(opened(recipe, cached, ahead=2), recipe, home / f"cut {cached}", stop)
        assert not reading_ahead()
        assert_equal(trained(opened(recipe, cached, ahead=2), recipe, home / f"cut {cached}"), expected)


def test_an_error_of_a_text_that_is_read_ahead_comes_after_the_blocks_before_it(
    opened: Open, recipe: CrosscoderRecipe, home: Path
):
    with (home / "web.jsonl").open("a") as file:
        file.write("no JSON\n")
    found: list[list[bytes]] = []
    for ahead in (0, 2):
        found.append([])
        with pytest.raises(DataError, match=r"web\.jsonl.*61"):
            found[-1].extend(x.numpy().tobytes() for x in opened(recipe, False, ahead=ahead).source.blocks())
    assert found[0] == found[1]
    assert len(found[0]) > 1
    assert not reading_ahead()


def test_a_stop_between_forwards_ends_the_reading_ahead(opened: Open, recipe: CrosscoderRecipe):
    one = opened(recipe, False, ahead=2)

    def stop(_: int) -> None:
        raise Stop

    source = HarvestSource(one.stream, one.activations, recipe, UNEVEN, stop, 2)
    with pytest.raises(Stop):
        next(source.blocks())
    assert not reading_ahead()


def test_no_block_crosses_the_end_of_an_epoch(opened: Open, recipe: CrosscoderRecipe):
    once = replace(recipe, training=replace(recipe.training, epochs=1))
    first = [x for x, *_ in opened(once, cached=False).seen()]
    assert [x for x, *_ in opened(recipe, cached=False).seen()] == 2 * first


@pytest.mark.parametrize("stop_at", [1, 4, 11, 20, 27])
def test_a_training_that_was_cut_while_it_filled_ends_with_the_same_weights(
    opened: Open, recipe: CrosscoderRecipe, home: Path, stop_at: int
):
    expected = trained(opened(recipe, cached=False), recipe, home / "plain")

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == stop_at:
            raise Stop

    cut, resumed = opened(recipe), opened(recipe)
    with pytest.raises(Stop):
        trained(cut, recipe, home / "cut", stop)
    num_made = len(cut.shards())
    crosscoder = trained(resumed, recipe, home / "cut")
    assert_equal(crosscoder, expected)
    assert resumed.told == []
    forwards = [one.activations.forwards for one in (cut, resumed)]
    assert num_made
    assert (forwards[1] == 0) == (num_made == len(resumed.shards())), "no shard is made twice"
    assert resumed.num_refused == 18


def test_an_unfinished_cache_is_taken_up_by_another_training(opened: Open, recipe: CrosscoderRecipe):
    whole = opened(recipe, cached=False)
    expected = list(whole.seen())
    begun = opened(recipe)
    blocks = begun.source.blocks()
    for _ in range(3):
        next(blocks)
    assert len(begun.shards()) == 3
    assert begun.cache.num_shards() is None
    other = opened(recipe)
    assert list(other.seen()) == expected
    assert begun.activations.forwards + other.activations.forwards == whole.activations.forwards / 2
    assert other.cache.num_shards() is not None


@pytest.mark.parametrize("size", [UNEVEN, EVEN])
def test_a_death_right_before_the_end_is_written(
    opened: Open, recipe: CrosscoderRecipe, even: CrosscoderRecipe, size: int
):
    recipe = recipe if size == UNEVEN else even
    filling = opened(recipe, True, size)
    expected = list(filling.seen())
    complete = filling.cache.folder / "complete.json"
    before = complete.read_text()
    complete.unlink()
    again = opened(recipe, True, size)
    assert list(again.seen()) == expected
    assert again.activations.forwards == 0
    assert complete.read_text() == before


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00" * 500)


def another_file(path: Path) -> None:
    save_file({"x": torch.zeros(3, 4)}, path, {"shard": json.dumps({"num_tokens": 3, "state": {}})})


@pytest.mark.parametrize("damage", [cut_short, garbage, another_file, Path.touch, Path.unlink])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_damaged_shard_is_made_again_and_said_once(
    opened: Open, recipe: CrosscoderRecipe, damage: Callable[[Path], None], which: int
):
    filling = opened(recipe)
    expected = list(filling.seen())
    path = filling.shards()[which]
    before = path.read_bytes()
    if damage is Path.touch:
        path.write_bytes(b"")
    else:
        damage(path)
    again = opened(recipe)
    assert list(again.seen()) == expected
    assert len(again.told) == 1
    assert str(path) in again.told[0]
    assert path.read_bytes() == before
    assert 0 < again.activations.forwards < filling.activations.forwards / 2, "only that shard is made again"


def test_several_missing_shards_and_a_deleted_folder(opened: Open, recipe: CrosscoderRecipe):
    filling = opened(recipe)
    expected = list(filling.seen())
    one, two, *_ = filling.shards()
    one.unlink()
    two.unlink()
    again = opened(recipe)
    seen = again.seen()
    found = [next(seen) for _ in range(3)]
    assert len(again.told) == 2
    for path in again.cache.folder.iterdir():
        path.unlink()
    again.cache.folder.rmdir()
    found += seen
    assert found == expected
    assert (again.cache.folder / "key.json").exists()


def test_two_trainings_that_fill_at_once_write_the_same(opened: Open, recipe: CrosscoderRecipe):
    alone = opened(recipe)
    expected = list(alone.seen())
    written = {path.name: path.read_bytes() for path in alone.cache.folder.iterdir()}
    for path in alone.cache.folder.iterdir():
        path.unlink()
    first, second = opened(recipe), opened(recipe)
    found: tuple[list[Any], list[Any]] = [], []
    draw = random.Random(1)
    seen = [one.seen() for one in (first, second)]
    while len(found[0]) < len(expected) or len(found[1]) < len(expected):
        which = draw.randrange(2)
        if (block := next(seen[which], None)) is not None:
            found[which].append(block)
    assert found[0] == found[1] == expected
    assert {path.name: path.read_bytes() for path in alone.cache.folder.iterdir()} == written
    assert 0 < second.activations.forwards < alone.activations.forwards, "each reads what the other has written"


def test_the_same_shard_has_the_same_bytes_whoever_writes_it(tmp_path: Path):
    state = {f"key{i}": i for i in range(20)}
    for home in ("a", "b", "c", "d"):
        ActivationCache(tmp_path / home, {}, 2).write(0, Shard(torch.arange(6.0).reshape(3, 2), state))
    paths = list(tmp_path.glob("*/activations/*/shard-000000.safetensors"))
    assert len(paths) == 4
    assert len({path.read_bytes() for path in paths}) == 1
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o644}, "another user's training may read it"


def test_a_block_without_tokens_is_a_shard_too(tmp_path: Path):
    cache = ActivationCache(tmp_path, {}, 5)
    cache.write(0, Shard(torch.empty(0, 5), {"epoch": 1}))
    shard = cache.read(0)
    assert shard is not None
    assert shard.x.shape == (0, 5)
    assert shard.state == {"epoch": 1}


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Generator[None]:
    """The kernel refuses bytes beyond a file-size limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_says_what_is_needed_and_leaves_nothing(opened: Open, recipe: CrosscoderRecipe):
    expected = list(opened(recipe, cached=False).seen())
    filling = opened(recipe)
    blocks = filling.source.blocks()
    next(blocks)
    (shard,) = filling.shards()
    with largest_file(shard.stat().st_size // 2), pytest.raises(CacheFull) as caught:
        next(blocks)
    sentence = str(caught.value)
    needed = len(expected[1][0])
    assert f"{filling.cache.folder}: {needed} bytes are needed for shard-000001" in sentence
    assert "set training.cache: false" in sentence
    assert caught.value.errno is None, "the job shows the sentence, not the system's"
    names = {path.name for path in filling.cache.folder.iterdir()}
    assert names == {"key.json", shard.name}
    assert list(opened(recipe).seen()) == expected


def test_a_disk_that_is_full_from_the_start(opened: Open, recipe: CrosscoderRecipe):
    filling = opened(recipe)
    with largest_file(10), pytest.raises(CacheFull, match=r"needed for key\.json"):
        next(filling.source.blocks())
    assert not list(filling.cache.folder.iterdir())


def test_half_written_files_of_a_dead_attempt_are_removed_after_a_while(tmp_path: Path):
    cache = ActivationCache(tmp_path, {}, 5)
    cache.write(0, Shard(torch.zeros(1, 5), {}))
    for name, age in (("old", GRACE_S + 1), ("young", GRACE_S - 1)):
        path = cache.folder / f".partial-{name}"
        path.mkdir()
        (path / ".tmp-of-the-library").touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    os.utime(cache.folder / "shard-000000.safetensors", (0, 0))
    assert cache.remove_partial(now=1e9) == [".partial-old"]
    left = {path.name for path in cache.folder.iterdir()}
    assert left == {".partial-young", "key.json", "shard-000000.safetensors"}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"name": "other"}, True),
        ({"training": {"epochs": 5, "seed": 3, "lr": 0.1}}, True),
        ({"crosscoder": {"num_latents": 64}}, True),
        ({"analysis": {"max_tokens": 7}}, True),
        ({"layer": 2}, False),
        ({"tokens": {"max_length": 63}}, False),
        ({"tokens": {"held_out_every": 6}}, False),
        ({"tokens": {"max_norm_ratio": None}}, False),
        ({"data": {"max_tokens": 100}}, False),
    ],
)
def test_the_key_holds_what_decides_the_activations_and_nothing_else(
    opened: Open, recipe: CrosscoderRecipe, change: dict[str, Any], same: bool
):
    parts: dict[str, Any] = {
        name: replace(getattr(recipe, name), **value) if isinstance(value, dict) and name != "data" else value
        for name, value in change.items()
    }
    if "data" in change:
        parts["data"] = (replace(recipe.data[0], **change["data"]), recipe.data[1])
    changed = replace(recipe, **parts)
    assert (opened(changed).cache.folder == opened(recipe).cache.folder) == same


def test_the_key_holds_the_content_of_files_models_and_the_size_of_a_forward(
    opened: Open, recipe: CrosscoderRecipe, home: Path
):
    one = opened(recipe)
    folders = {one.cache.folder, opened(recipe, True, UNEVEN + 1).cache.folder}
    key = cache_key(recipe, one.activations, one.stream.files, {"base": "other"}, UNEVEN)
    folders.add(ActivationCache(home, key, 64).folder)
    text = (home / "chat.jsonl").read_text()
    (home / "chat.jsonl").write_text(text.replace("fox", "Fox", 1))
    folders.add(opened(recipe).cache.folder)
    assert len(folders) == 4
    (home / "chat.jsonl").write_text(text)
    os.utime(home / "chat.jsonl", (0, 0))
    assert opened(recipe).cache.folder == one.cache.folder
    next(one.source.blocks())
    assert json.loads((one.cache.folder / "key.json").read_text())["data"][0]["path"] == "web.jsonl"


def test_what_may_change_unseen_is_not_cached(opened: Open, recipe: CrosscoderRecipe):
    one = opened(recipe, cached=False)
    hub = replace(recipe, data=(replace(recipe.data[0], source="hub", path="some/set", max_tokens=99),))
    with pytest.raises(CacheError, match=r"data set 'web' \(some/set\) comes from the hub .* training.cache: false"):
        cache_key(hub, one.activations, [[]], {}, UNEVEN)
    with pytest.raises(CacheError, match=r"the commit of the chat \(tiny\) is not known"):
        cache_key(recipe, one.activations, one.stream.files, {"base": "b", "chat": "commit:None"}, UNEVEN)


@pytest.mark.parametrize(("part", "file"), [("base", "weight file"), ("tokenizer", "tokenizer.json")])
def test_a_model_whose_files_are_not_hashed_is_not_cached(
    opened: Open, recipe: CrosscoderRecipe, tiny_pair: Pair, tmp_path: Path, part: str, file: str
):
    """Hashes would be the same for other weights in another file format."""
    one = opened(recipe, cached=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tf_model.h5").touch()
    manifest = replace(tiny_pair.manifest, **{part: str(tmp_path / "other")})
    activations = PairActivations(replace(tiny_pair, manifest=manifest), 1)
    with pytest.raises(CacheError, match=rf"no {file} in {tmp_path}/other"):
        cache_key(recipe, activations, one.stream.files, {"base": "b"}, UNEVEN)


def test_a_job_fills_the_cache_and_the_next_reads_it(home: Path, recipe: CrosscoderRecipe, tiny_pair: Pair):
    said: list[tuple[str, str]] = []

    def listen(stage: str, fraction: float, message: str = "", **_: Any) -> None:
        said.append((stage, message))

    def made(job: str, cache: bool) -> Crosscoder:
        (home / job).mkdir()
        wanted = replace(recipe, training=replace(recipe.training, cache=cache))
        roots = (Path(tiny_pair.manifest.base).parent,)
        manifest = make_crosscoder(wanted, Workspace(home, home / job, lambda: None, data_roots=roots), listen)
        assert manifest.skipped_texts == 18 + 2
        return load_crosscoder(home / "crosscoders/toy/versions" / manifest.version_id)

    expected = made("plain", cache=False)
    assert not (home / "activations").exists()
    assert_equal(made("filling", cache=True), expected)
    (path,) = home.glob("activations/*/shard-*.safetensors")
    hashes = json.loads((path.parent / "key.json").read_text())["pair"]
    assert hashes.pop("chat_template") == TextTokenizer(tiny_pair.tokenizer).template.settings_hash
    assert hashes == pair_hashes(tiny_pair.manifest)
    assert not [message for stage, message in said if stage == "cache"]
    before = path.read_bytes()
    cut_short(path)
    (dead := path.parent / ".partial-dead").mkdir()
    os.utime(dead, (0, 0))
    assert_equal(made("mending", cache=True), expected)
    assert [str(path) in message for stage, message in said if stage == "cache"] == [True]
    assert path.read_bytes() == before
    assert not dead.exists()
