"""The k largest of a token: exact counts, ties by latent, dense and sparse alike, saved and loaded."""

from pathlib import Path

import pytest
import torch
from fixtures_crosscoders import make_crosscoder, make_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import (
    ALL_POSITIVE,
    AboveModelThresholds,
    AboveThreshold,
    AboveThresholds,
    Keep,
    LargestByModel,
    LargestOfToken,
    StoredKeep,
)
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.sparsifier import largest


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=5),
    k=st.integers(1, 8),
)
def test_the_largest_are_exactly_k_and_ties_go_to_the_lower_latent(rows: list[list[int]], k: int):
    keep = largest(torch.tensor(rows, dtype=torch.float32), k)
    for row, kept in zip(rows, keep.tolist(), strict=True):
        best = sorted((i for i in range(6) if row[i] > 0), key=lambda i: (-row[i], i))[:k]
        assert [i for i in range(6) if kept[i]] == sorted(best)


def test_equal_activations_by_hand():
    """All rows have norm 2, so codes 3, 3, 3, 1 are scaled to 6, 6, 6, 2; two are kept: the first two."""
    crosscoder = Crosscoder(
        W_enc=torch.tensor([[3.0, 3.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]]),
        b_enc=torch.zeros(4),
        W_dec=torch.tensor([[1.0, 1.0]] * 4),
        b_dec=torch.zeros(2),
        d_model=(1, 1),
        variant="topk",
        keep=LargestOfToken(2),
    )
    x = torch.tensor([[1.0, 5.0], [-1.0, 5.0]])
    assert crosscoder.encode(x).tolist() == [[3.0, 3.0, 0.0, 0.0], [0.0] * 4]
    assert crosscoder.scaled(x).tolist() == [[6.0, 6.0, 0.0, 0.0], [0.0] * 4]
    assert crosscoder.decode(crosscoder.encode(x)).tolist() == [[6.0, 6.0], [0.0, 0.0]]
    code = crosscoder.encode_sparse(x)
    assert (code.tokens.tolist(), code.latents.tolist(), code.values.tolist()) == ([0, 0], [0, 1], [3.0, 3.0])


@pytest.mark.parametrize("normalisation", ["crosscoder", "none", "decoupled"])
def test_dense_and_sparse_agree_where_many_are_equal(normalisation: str):
    keep = LargestByModel(3) if normalisation == "decoupled" else LargestOfToken(3)
    crosscoder = make_crosscoder(code_normalisation=normalisation, keep=keep)
    for weights in (crosscoder.W_enc, crosscoder.W_dec, crosscoder.b_enc):
        weights.copy_(weights.round())
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(5)).round()
    sparsifier, code = crosscoder.sparsifier(), crosscoder.encode(x)
    sparse = crosscoder.encode_sparse(x)
    assert torch.equal(sparse.dense(11), code)
    scaled = sparse._replace(values=sparsifier.scaled_entries(sparse)).dense(11)
    torch.testing.assert_close(scaled, crosscoder.scaled(x))
    kept_by = [
        sparse._replace(values=keep.float()).dense(11).bool() & (code > 0) for keep in sparsifier.kept_by(sparse)
    ]
    for model, kept in enumerate(sparsifier.kept_by_models(code)):
        assert torch.equal(kept_by[model], kept)
        assert int(kept.sum(dim=1).max()) == 3
    parts = crosscoder.decode_sparse(sparse, sparsifier.kept_by(sparse))
    torch.testing.assert_close(parts, crosscoder.decode(code))


def test_it_is_saved_and_loaded(tmp_path: Path):
    crosscoder = make_crosscoder(keep=LargestOfToken(3), notes=("A sentence.",))
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    loaded = load_crosscoder(tmp_path)
    assert (loaded.keep, loaded.notes) == (LargestOfToken(3), ("A sentence.",))
    x = torch.randn(20, 8)
    assert torch.equal(loaded.encode(x), crosscoder.encode(x))


def test_an_older_manifest_loads(tmp_path: Path):
    crosscoder = make_crosscoder(keep=AboveThreshold(1.5))
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    path = tmp_path / "crosscoder.json"
    lines = [line for line in path.read_text().splitlines() if '"token_k"' not in line and '"notes"' not in line]
    assert len(lines) == len(path.read_text().splitlines()) - 2
    path.write_text("\n".join(lines))
    loaded = load_crosscoder(tmp_path)
    assert (loaded.keep, loaded.notes) == (AboveThreshold(1.5), ())


@pytest.mark.parametrize("k", [0, 12])
def test_a_k_beyond_the_latents_is_refused(k: int):
    with pytest.raises(CrosscoderError, match=f"token_k is {k}, but there are 11 latents"):
        make_crosscoder(keep=LargestOfToken(k))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (StoredKeep(token_k=3, threshold=1.0), "a threshold is stored beside token_k"),
        (StoredKeep(token_k=3, latent_thresholds=torch.ones(11)), "a threshold is stored beside token_k"),
        (StoredKeep(token_k=3, model_thresholds=torch.ones(2, 11)), "a threshold is stored beside token_k"),
        (StoredKeep(threshold=1.0, latent_thresholds=torch.ones(11)), "keep one kind"),
        (StoredKeep(threshold=1.0, model_thresholds=torch.ones(2, 11)), "keep one kind"),
    ],
)
def test_files_that_hold_two_rules_are_refused(stored: StoredKeep, message: str):
    with pytest.raises(CrosscoderError, match=message):
        stored.rule()


RULES = [
    ALL_POSITIVE,
    AboveThreshold(1.5),
    AboveThresholds(torch.arange(11.0)),
    AboveModelThresholds(torch.arange(22.0).reshape(2, 11) - 3),
    LargestOfToken(3),
    LargestByModel(3),
]


@pytest.mark.parametrize("keep", RULES, ids=lambda keep: type(keep).__name__)
def test_every_rule_is_saved_and_loaded(tmp_path: Path, keep: Keep):
    crosscoder = make_crosscoder(keep=keep, code_normalisation="decoupled" if keep.decoupled else "crosscoder")
    crosscoder.save(tmp_path, make_manifest(crosscoder))
    loaded = load_crosscoder(tmp_path)
    assert type(loaded.keep) is type(keep)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.encode(x), crosscoder.encode(x))
    assert torch.equal(loaded.scaled(x), crosscoder.scaled(x))


@pytest.mark.parametrize("keep", RULES, ids=lambda keep: type(keep).__name__)
def test_some_latents_alone_activate_as_they_do_among_all(keep: Keep):
    normalisation = "decoupled" if keep.decoupled else "crosscoder"
    crosscoder = make_crosscoder(keep=keep, code_normalisation=normalisation, input_scale=(0.5, 2.0))
    latents, x = torch.tensor([7, 2, 3]), torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    alone = crosscoder.only(latents)
    if isinstance(keep, LargestOfToken):
        assert alone is None
        return
    assert alone is not None
    expected = crosscoder.scaled(x)[:, latents]
    torch.testing.assert_close(alone.scaled(x), expected)
    assert 0 < int(expected.count_nonzero()) < expected.numel()
    kept = crosscoder.sparsifier().kept_by_models(crosscoder.encode(x))
    found = alone.sparsifier().kept_by_models(alone.encode(x))
    for some, whole in zip(found, kept, strict=True):
        assert torch.equal(some, whole[:, latents])
