"""Examples: exact top and quantile groups against brute force, values against dense codes, duplicates once."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from crosscope_worker.analysis import HeldOut, analyse, examples, silent
from crosscope_worker.analysis.examples import TextFacts, choose, peak_contexts
from crosscope_worker.analysis.store import Segments, Store, runs
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.tokenizer.pieces import lone_pieces, text_pieces
from crosscope_worker.work import silent as no_progress


def run(world, tokenizer):
    return analyse(world.crosscoder, HeldOut(world.harvests, world.datasets, tokenizer), world.spec, no_progress)


def activations(world):
    """Scaled activations of every text as {(data set, ids): {latent: {position: value}}}, from dense codes."""
    norms = world.crosscoder.code_norms().double().numpy()
    texts = [text for harvest in world.harvests for text in harvest.texts]
    found = {}
    for block in world.blocks():
        scaled = world.dense(block)[0] * norms
        for token, latent in zip(*np.nonzero(scaled), strict=True):
            text = texts[int(block.text[token])]
            key = (text.dataset, tuple(text.ids.tolist()))
            of_text = found.setdefault(key, {}).setdefault(latent, {})
            of_text[int(block.position[token])] = scaled[token, latent]
    return found


def groups(analysis):
    """{(latent, data set, group, quantile): [(ids, row), …] by rank}."""
    ids = [tuple(each) for each in analysis.sequences["token_ids"].to_pylist()]
    result = defaultdict(list)
    for row in analysis.examples.to_pylist():
        key = (row["latent"], row["dataset"], row["group"], row["quantile"])
        assert row["rank"] == len(result[key])
        result[key].append((ids[row["sequence"]], row))
    return result


def test_top_and_bands_equal_brute_force(make_world, tokenizer):
    world = make_world(num_texts=61, seed=4)
    found, chosen = activations(world), groups(run(world, tokenizer))
    for latent in range(13):
        for index, name in enumerate(world.datasets):
            maxima = sorted(
                ((max(of_text[latent].values()), ids) for (set_, ids), of_text in found.items()
                 if set_ == index and latent in of_text),
                reverse=True,
            )  # fmt: skip
            top = chosen.get((latent, name, "top", 0), [])
            assert [ids for ids, _ in top] == [ids for _, ids in maxima[:3]]
            ascending = [ids for _, ids in reversed(maxima)]
            for band in range(4):
                members = [ids for r, ids in enumerate(ascending) if r * 4 // len(ascending) == band][::-1]
                count = len(members)
                expected = members if count <= 2 else [members[int((t + 0.5) * count / 2)] for t in range(2)]
                assert [ids for ids, _ in chosen.get((latent, name, "quantile", band), [])] == expected


def test_an_example_holds_the_whole_text_of_the_latent(make_world, tokenizer):
    world = make_world(seed=6)
    found, analysis = activations(world), run(world, tokenizer)
    assert analysis.examples.num_rows > 50
    for (latent, name, _, _), members in groups(analysis).items():
        for ids, row in members:
            expected = found[(world.datasets.index(name), ids)][latent]
            assert row["positions"] == sorted(expected)
            np.testing.assert_allclose(row["values"], [expected[p] for p in row["positions"]], rtol=1e-3)
            assert row["max"] == pytest.approx(max(expected.values()), rel=1e-5)


def test_rows_are_sorted_as_the_layout_says(make_world, tokenizer):
    rows = run(make_world(), tokenizer).examples.to_pylist()
    keys = [(row["latent"], row["dataset"], row["group"], row["quantile"], row["rank"]) for row in rows]
    assert keys == sorted(keys)


def test_sequences_show_their_pieces_and_roles(make_world, tokenizer):
    world = make_world()
    by_ids = {tuple(text.ids.tolist()): text for harvest in world.harvests for text in harvest.texts}
    rows = run(world, tokenizer).sequences.to_pylist()
    assert len({tuple(row["token_ids"]) for row in rows}) == len(rows)
    for row in rows:
        text = by_ids[tuple(row["token_ids"])]
        assert row["roles"] == text.roles.tolist()
        assert row["dataset"] == world.datasets[text.dataset]
        assert row["pieces"] == text_pieces(tokenizer, row["token_ids"])


def test_equal_texts_count_once(make_world, tokenizer):
    world = make_world()
    once = run(world, tokenizer)
    world.harvests += world.harvests
    twice = run(world, tokenizer)
    assert twice.examples.drop(["sequence", "repeats"]).equals(once.examples.drop(["sequence", "repeats"]))
    assert twice.examples["repeats"].to_pylist() == [2 * n + 1 for n in once.examples["repeats"].to_pylist()]
    assert twice.sequences.num_rows == once.sequences.num_rows
    assert twice.num_tokens == 2 * once.num_tokens


def segments(maxima):
    n = len(maxima)
    return Segments(
        latent=np.zeros(n, np.uint32),
        text=np.arange(n, dtype=np.uint32),
        max=np.array(maxima, np.float32),
        peak=np.zeros(n, np.uint16),
        start=np.arange(n, dtype=np.uint64),
        length=np.ones(n, np.uint32),
    )


def choose_of(maxima, spec, windows=None, copies=None):
    """Of one latent and data set; every text says something else unless `windows` are given."""
    n = len(maxima)
    texts = TextFacts(np.zeros(n, np.int64), np.array(copies or [1] * n))
    return choose(segments(maxima), np.array(windows or range(n), np.uint64), texts, ("documents",), spec)


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_pieces_of_latents_give_the_same_choice(make_world, monkeypatch, at_once):
    """Latents 0 to 8 of 0 to 40 texts each, in the order of a pass: whole latents, more or fewer at a time."""
    rng = np.random.default_rng(0)
    pairs = np.array([(j, text) for j in range(9) for text in rng.choice(40, 5 * j, replace=False)])
    pairs = pairs[rng.permutation(len(pairs))]
    found = replace(
        segments(rng.integers(0, 5, len(pairs))),
        latent=pairs[:, 0].astype(np.uint32),
        text=pairs[:, 1].astype(np.uint32),
    )
    names, spec = ("web", "chat", "more"), make_world().spec
    texts = TextFacts(rng.integers(0, 3, 40), np.ones(40, np.int64))
    windows = rng.integers(0, 30, len(pairs)).astype(np.uint64)
    whole = choose(found, windows, texts, names, spec)
    monkeypatch.setattr(examples, "SEGMENTS_AT_ONCE", at_once)
    for name, expected in vars(whole).items():
        np.testing.assert_array_equal(getattr(choose(found, windows, texts, names, spec), name), expected)
    assert len(np.unique(found.latent[whole.segment])) == 8


def test_segments_are_joined_once(make_world):
    world, store = make_world(), Store()
    for harvest in world.harvests:
        for text in harvest.texts:
            store.add_text(text)
    blocks = world.blocks()
    for block in blocks:
        store.add(block)
    found = store.segments()
    firing = [torch.unique(torch.stack([block.latents, block.text[block.tokens]], 1), dim=0) for block in blocks]
    assert np.array_equal(np.stack([found.latent, found.text], 1), torch.cat(firing))
    assert all(
        np.shares_memory(one, other)
        for one, other in zip(vars(found).values(), vars(store.segments()).values(), strict=True)
    )
    store.close()


def test_nothing_is_chosen_of_nothing(make_world):
    texts = TextFacts(np.empty(0, np.int64), np.empty(0, np.int64))
    choice = choose(Segments.empty(), np.empty(0, np.uint64), texts, ("documents",), make_world().spec)
    assert [len(array) for array in vars(choice).values()] == [0] * 9


def test_runs_by_hand():
    assert list(runs(np.array([3, 4, 9, 0, 0, 1]), 7)) == [(0, 2), (2, 3), (3, 6)]
    assert list(runs(np.array([3, 4, 9, 0, 0, 1]), 7, most=2)) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert list(runs(np.array([], np.int64), 7)) == []


def test_bands_by_hand(make_world):
    """Ten texts, four bands: ascending ranks 0-2, 3-4, 5-7, 8-9; the middle one of three, of two the weaker."""
    spec = make_world(top_examples=2, examples_per_quantile=1).spec
    choice = choose_of([float(i) for i in range(10)], spec)
    picked = list(zip(choice.group.tolist(), choice.quantile.tolist(), choice.segment.tolist(), strict=True))
    ranges = list(zip(choice.low.tolist(), choice.high.tolist(), choice.members.tolist(), strict=True))
    assert ranges == [(0, 2, 3), (3, 4, 2), (5, 7, 3), (8, 9, 2), (0, 9, 10), (0, 9, 10)]
    assert picked == [(0, 0, 1), (0, 1, 3), (0, 2, 6), (0, 3, 8), (2, 0, 9), (2, 0, 8)]


def test_no_quantile_examples_when_none_are_asked_for(make_world, tokenizer):
    world = make_world(examples_per_quantile=0, silent_examples=0)
    assert set(run(world, tokenizer).examples["group"].to_pylist()) == {"top"}


def test_ties_go_to_the_earlier_text(make_world):
    spec = make_world(top_examples=2, examples_per_quantile=0).spec
    choice = choose_of([1.0, 5.0, 5.0, 5.0], spec)
    assert choice.segment.tolist() == [1, 2]


def reading_one_dimension(make_world, texts, **spec):
    """A world of (data set, token ids, activations of latent 1): it reads dimension 0 of the base model, all others
    are dead. A first token is left out."""
    world = make_world(num_latents=4, threshold=None, input_scale=(1.0, 1.0), **spec)
    crosscoder = world.crosscoder
    crosscoder.W_enc = torch.zeros_like(crosscoder.W_enc)
    crosscoder.W_enc[0, 1] = 1.0
    crosscoder.b_enc = torch.zeros(4)
    lengths = torch.tensor([len(ids) - 1 for _, ids, _ in texts])
    x = torch.zeros(int(lengths.sum()), 10)
    x[:, 0] = torch.tensor([value for _, _, values in texts for value in values[1:]])
    held = [Text(each, np.array(ids), np.array([2] + [1] * (len(ids) - 1), np.uint8)) for each, ids, _ in texts]
    position = torch.cat([torch.arange(1, n + 1) for n in lengths.tolist()])
    ones = torch.ones(len(x), dtype=torch.uint8)
    dataset = torch.tensor([each for each, _, _ in texts], dtype=torch.uint8).repeat_interleave(lengths)
    world.harvests = [Harvest(held, x, torch.arange(len(texts)).repeat_interleave(lengths), position, ones, dataset)]
    return world


def test_silent_texts_by_hand(make_world, tokenizer):
    """Latent 1 peaks on token 50. Nearest is the text that shares most of the tokens around it; equal texts are one."""
    quiet = [0.0] * 6
    texts = [
        (0, [2, 40, 41, 50, 42, 43], [0, 0, 0, 3.0, 0, 0]),
        (0, [2, 60, 61, 50, 62, 63], quiet),  # shares BOS
        (0, [2, 40, 41, 50, 42, 44], quiet),  # shares four
        (0, [50, 40, 41, 42, 43, 44], quiet),  # the token is left out, so nobody knows
        (0, [2, 40, 41, 51, 42, 43], quiet),  # another token
        (0, [2, 50, 41, 45, 42, 43], [0, 0, 0, 1.0, 0, 0]),  # it fires elsewhere
        (0, [2, 60, 61, 50, 62, 63], quiet),  # once more
        (0, [2, 70, 41, 50, 71, 50], quiet),  # twice; the first shares BOS and 41, the second nothing
        (1, [2, 40, 41, 50, 42, 43], quiet),  # of a data set in which it never fires
    ]
    world = reading_one_dimension(make_world, texts)
    names = ("group_texts", "rank", "positions", "values", "max", "repeats", "group_low", "group_high")
    by_text = {}
    for keep in (5, 2, 0):
        world.spec = replace(world.spec, silent_examples=keep)
        analysis = run(world, tokenizer)
        ids = analysis.sequences["token_ids"].to_pylist()
        rows = [row for row in analysis.examples.to_pylist() if row["group"] == "silent"]
        assert {(row["latent"], row["dataset"]) for row in rows} == ({(1, "documents")} if keep else set())
        by_text[keep] = [(ids[row["sequence"]], *(row[name] for name in names)) for row in rows]
    assert by_text[5] == [
        (texts[2][1], 3, 0, [3], [0.0], 0.0, 0, 0.0, 0.0),
        (texts[7][1], 3, 1, [3], [0.0], 0.0, 0, 0.0, 0.0),
        (texts[1][1], 3, 2, [3], [0.0], 0.0, 1, 0.0, 0.0),
    ]
    assert (by_text[2], by_text[0]) == (by_text[5][:2], [])


def test_silent_texts_are_the_same_in_pieces(make_world, tokenizer, monkeypatch):
    world = make_world(num_texts=61, seed=4)
    for harvest in world.harvests:
        for text in harvest.texts:
            text.ids[:] %= 7
    whole = run(world, tokenizer).examples
    found = [row for row in whole.to_pylist() if row["group"] == "silent"]
    fired = {(latent, ids) for (_, ids), latents in activations(world).items() for latent in latents}
    ids = [tuple(each) for each in run(world, tokenizer).sequences["token_ids"].to_pylist()]
    assert len(found) > 10
    assert not any((row["latent"], ids[row["sequence"]]) in fired for row in found)
    monkeypatch.setattr(silent, "KEYS_AT_ONCE", 3)
    monkeypatch.setattr(silent, "SEGMENTS_AT_ONCE", 5)
    assert run(world, tokenizer).examples.equals(whole)


def test_top_tokens_and_the_text_around_the_peak(make_world, tokenizer):
    """One latent that reads dimension 0 of the base model; token 50 peaks in two texts, token 60 in the first."""
    texts = [(0, [2, 40 + n, peak, 70 + n], [0, 1, 3, 2]) for n, peak in enumerate((60, 50, 50))]
    latents = run(reading_one_dimension(make_world, texts), tokenizer).latents
    assert latents["top_tokens"].to_pylist() == [[], lone_pieces(tokenizer, [50, 60]), [], []]
    # All three texts are equally strong: the first one counts.
    first, second, peak, behind = text_pieces(tokenizer, np.array([2, 40, 60, 70]))
    nothing = ["", "", ""]
    assert latents["peak_context"].to_pylist() == [nothing, [first + second, peak, behind], nothing, nothing]


def test_the_text_around_a_peak_has_four_tokens_on_each_side(make_world):
    """The second of two texts is stronger; of its twelve tokens the seventh is the peak."""
    spec = make_world(top_examples=1, examples_per_quantile=0).spec
    found = replace(segments([2.0, 5.0]), peak=np.array([0, 6], np.uint16))
    facts = TextFacts(np.zeros(2, np.int64), np.ones(2, np.int64))
    choice = choose(found, np.arange(2, dtype=np.uint64), facts, ("documents",), spec)
    sequences = pa.table({"pieces": pa.array([list("mnopqrstuvwx")], pa.list_(pa.string()))})
    contexts = peak_contexts(choice, found, sequences, np.array([1]), 2)
    assert contexts.to_pylist() == ["opqr", "s", "tuvw", "", "", ""]


@pytest.mark.parametrize(
    ("quantiles", "expected"),
    [
        (1, [(0, 4)]),
        (2, [(0, 2), (1, 7)]),
        (5, [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]),
    ],
)
def test_as_many_bands_as_are_asked_for(make_world, quantiles, expected):
    """Ten texts of maxima 0 to 9: bands of ten, five and two, of which the upper middle one or the middle is taken."""
    spec = make_world(top_examples=1, quantiles=quantiles, examples_per_quantile=1).spec
    choice = choose_of([float(i) for i in range(10)], spec)
    banded = choice.group == 0
    assert list(zip(choice.quantile[banded].tolist(), choice.segment[banded].tolist(), strict=True)) == expected
