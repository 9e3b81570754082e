import numpy as np
import pytest
import torch

from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.data.harvest import Harvest, HarvestError, harvest, policy_positions
from crosscope_worker.data.texts import Text
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair

LENGTHS = (5, 1, 30, 2, 17, 3, 9)


def make_texts(lengths: tuple[int, ...] = LENGTHS) -> list[Text]:
    random = np.random.default_rng(0)
    roles = [np.array([TokenRole.BOS] + [TokenRole.TEXT] * (length - 1), dtype=np.uint8) for length in lengths]
    ids = [np.concatenate([[2], random.integers(6, 300, length - 1)]).astype(np.int64) for length in lengths]
    return [
        Text(index % 2, *text, place=f"a.txt, line {index + 1}")
        for index, text in enumerate(zip(ids, roles, strict=True))
    ]


@pytest.fixture(scope="module")
def activations(tiny_pair: Pair) -> PairActivations:
    return PairActivations(tiny_pair, 2)


def kept(harvests: list[Harvest]) -> list[tuple[int, int]]:
    """(text, position) over all harvests, texts counted through."""
    result: list[tuple[int, int]] = []
    first = 0
    for one in harvests:
        result += [
            (first + text, position) for text, position in zip(one.text.tolist(), one.position.tolist(), strict=True)
        ]
        first += len(one.texts)
    return result


@pytest.mark.parametrize("tokens_per_forward", [1, 7, 40, 8192])
def test_every_kept_token_once_in_order_with_its_own_activation(
    activations: PairActivations, tokens_per_forward: int
) -> None:
    texts = make_texts()
    harvests = list(harvest(iter(texts), activations, TokenPolicy(skip_first=2), tokens_per_forward))
    assert kept(harvests) == [(i, position) for i, length in enumerate(LENGTHS) for position in range(2, length)]
    assert [text for one in harvests for text in one.texts] == texts
    for one in harvests:
        assert not one.x.is_inference(), "training needs tensors that autograd may save"
        for row in range(len(one.x)):
            text, position = one.texts[int(one.text[row])], int(one.position[row])
            alone = activations(torch.from_numpy(text.ids)[None], torch.tensor([len(text.ids)]))[0, position]
            torch.testing.assert_close(one.x[row], alone, atol=1e-5, rtol=1e-5)
            assert one.role[row] == text.roles[position]
            assert one.dataset[row] == text.dataset


def test_forwards_hold_at_most_the_budget(activations: PairActivations) -> None:
    sizes: list[tuple[int, int]] = []

    class Watched(PairActivations):
        def rows(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
            sizes.append((ids.shape[0], ids.shape[1]))
            return super().rows(ids, positions)

    watched = Watched(activations.pair, 2)
    assert watched.shares_rows
    sizes.clear()
    list(harvest(make_texts(), watched, TokenPolicy(), tokens_per_forward=20))
    # 30; 17; 9 beside 5, 3 and 1; 2.
    assert sizes == [(1, 30), (1, 17), (2, 9), (1, 2)]


def test_bos_is_kept_when_asked(activations: PairActivations) -> None:
    texts = make_texts((3, 2))
    with_bos = list(harvest(texts, activations, TokenPolicy(skip_bos=False)))
    assert kept(with_bos) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert kept(list(harvest(texts, activations, TokenPolicy()))) == [(0, 1), (0, 2), (1, 1)]


def test_outlying_norms_are_left_out_by_the_median_of_the_first_window(activations: PairActivations) -> None:
    texts = make_texts()
    everything = torch.cat([one.x for one in harvest(texts, activations, TokenPolicy())])
    base, chat = (part.norm(dim=-1) for part in everything.split(activations.d_model, dim=-1))
    ratio = float((base / base.median()).quantile(0.8))
    expected = (base <= ratio * base.median()) & (chat <= ratio * chat.median())
    found = torch.cat([one.x for one in harvest(texts, activations, TokenPolicy(max_norm_ratio=ratio))])
    assert 0 < len(found) < len(everything)
    torch.testing.assert_close(found, everything[expected])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_activation_that_is_not_finite_is_named(activations: PairActivations, value: float) -> None:
    texts = make_texts((6, 4))
    poison = int(texts[0].ids[3])

    class Broken(PairActivations):
        def rows(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
            x = super().rows(ids, positions).clone()
            x[ids == poison] = torch.where(torch.arange(x.shape[2]) == 40, value, 0.0)
            return x

    says = "^a.txt, line 1, token 3: the chat model's activation is not finite; leave the text out$"
    with pytest.raises(HarvestError, match=says):
        list(harvest([texts[1], texts[1], *texts], Broken(activations.pair, 1), TokenPolicy()))


def test_a_policy_that_keeps_nothing(activations: PairActivations) -> None:
    with pytest.raises(HarvestError, match=r"keeps no token of 2 texts; lower skip_first \(50\)"):
        list(harvest(make_texts((4, 6)), activations, TokenPolicy(skip_first=50)))
    assert list(harvest([], activations, TokenPolicy())) == []


def test_a_harvest_that_goes_on_may_have_nothing_left(activations: PairActivations) -> None:
    (rest,) = harvest(make_texts((4, 6)), activations, TokenPolicy(skip_first=50), num_before=3)
    assert len(rest.x) == 0


def test_every_bos_and_all_padding_is_left_out() -> None:
    roles = np.array([TokenRole.PAD, TokenRole.BOS, TokenRole.USER, TokenRole.BOS, TokenRole.ASSISTANT], np.uint8)
    assert policy_positions(roles, TokenPolicy()).tolist() == [2, 4]
    assert policy_positions(roles, TokenPolicy(skip_bos=False)).tolist() == [1, 2, 3, 4]
    assert policy_positions(roles, TokenPolicy(skip_first=3)).tolist() == [4]
