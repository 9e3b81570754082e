"""Nested prefixes: what they have in common with batch_topk, and what the first of them learns; gradients are in
test_objective.py, numbers by hand in test_losses_by_hand.py.
"""

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run
from torch import Tensor

from crosscope_proto.artefacts import LatentPart
from crosscope_proto.dictionaries import dictionary
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import StoredKeep
from crosscope_worker.training.variants import variant_of


@pytest.mark.parametrize("normalisation", ["crosscoder", "decoupled"])
def test_one_prefix_is_batch_topk_bit_for_bit(tmp_path: Path, normalisation: str):
    plain = {"variant": "batch_topk", "num_latents": 24, "k": 2, "code_normalisation": normalisation}
    nested = plain | {"variant": "matryoshka", "prefixes": [24]}
    expected, found = (
        run(make_recipe(spec, dead_after_tokens=100), tmp_path / spec["variant"]) for spec in (plain, nested)
    )
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(found.crosscoder, name), getattr(expected.crosscoder, name)), name
    kept = [StoredKeep.of(each.crosscoder.keep, 24) for each in (found, expected)]
    assert kept[0].threshold == kept[1].threshold
    assert all(torch.equal(each, kept[1].tensors[name]) for name, each in kept[0].tensors.items())
    curves = [[row for row in each.curves if row[1] != "tokens_per_second"] for each in (found, expected)]
    assert curves[0] == curves[1]


def test_a_latent_has_the_part_that_its_smallest_prefix_adds():
    nested = variant_of(dictionary(variant="matryoshka", num_latents=6, k=2, prefixes=[1, 3, 6]), (4, 4))
    one, two, three = LatentPart.PREFIX_1, LatentPart.PREFIX_2, LatentPart.PREFIX_3
    assert nested.parts() == (one, two, two, three, three, three)
    most = variant_of(dictionary(variant="matryoshka", num_latents=8, k=2, prefixes=[*range(1, 9)]), (4, 4))
    assert [part.value for part in most.parts()] == [f"prefix_{i}" for i in range(1, 9)]
    assert variant_of(dictionary(variant="matryoshka", num_latents=6, k=2, prefixes=[6]), (4, 4)).parts() == ()


PARENTS, CHILDREN = 3, 4


class Families(PlantedSource):
    """Parents fire alone, or each with one of its own children, which never fire without it; all are orthogonal."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks=num_blocks)
        draw = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        self.directions = torch.linalg.qr(draw).Q[: PARENTS * (1 + CHILDREN)]
        self.sizes = torch.tensor([3.0] * PARENTS + [2.1] * (PARENTS * CHILDREN))

    def blocks(self) -> Generator[Tensor]:
        while self.next < self.num_blocks:
            generator = torch.Generator().manual_seed(1000 + self.next)
            self.next += 1
            shape = (self.block_tokens, PARENTS)
            parents = torch.rand(shape, generator=generator) < 0.35
            which = torch.nn.functional.one_hot(torch.randint(CHILDREN, shape, generator=generator), CHILDREN).bool()
            children = which & (parents & (torch.rand(shape, generator=generator) < 0.8))[..., None]
            active = torch.cat([parents, children.flatten(1)], 1)
            strength = 1 + 0.2 * torch.rand(active.shape, generator=generator)
            yield (active * strength * self.sizes) @ self.directions


def parents_found(crosscoder: Crosscoder) -> tuple[list[int], Tensor, Tensor]:
    """For each parent the latent nearest to it, its cosine, and the share of the parent's held-out tokens on which it
    fires.
    """
    source = Families(10_010)
    source.next = 10_000
    x = torch.cat(list(source.blocks()))
    active = (x @ source.directions[:PARENTS].T) > 1
    rows = torch.nn.functional.normalize(crosscoder.W_dec, dim=1)
    cosines, latents = (source.directions[:PARENTS] @ rows.T).max(1)
    fires = crosscoder.encode(x)[:, latents] > 0
    return latents.tolist(), cosines, (fires & active).sum(0) / active.sum(0)


def test_the_first_prefix_learns_parents_which_batch_topk_lets_their_children_absorb(tmp_path: Path):
    found = []
    for options in ({"variant": "matryoshka", "prefixes": [PARENTS, 24]}, {"variant": "batch_topk"}):
        recipe = make_recipe({"num_latents": 24, "k": 2} | options, lr=1e-2, buffer_tokens=2048, dead_after_tokens=2000)
        found.append(parents_found(run(recipe, tmp_path / options["variant"], Families(250)).crosscoder))
    latents, cosines, recall = found[0]
    assert sorted(latents) == [0, 1, 2]
    assert cosines.min() > 0.97
    assert recall.min() > 0.98
    _, cosines, recall = found[1]
    assert cosines.min() < 0.9
    assert recall.min() < 0.5
