"""Small random worlds: a crosscoder, held-out activations, and dense float64 copies that check the sums."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.intake import blocks
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.data.texts import TaggedBehaviour, Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import ALL_POSITIVE, AboveModelThresholds, AboveThreshold
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer

ROLES = [TokenRole.BOS, TokenRole.HEADER, TokenRole.USER, TokenRole.HEADER, TokenRole.ASSISTANT, TokenRole.TURN_END]


@dataclass
class World:
    crosscoder: Crosscoder
    harvests: list[Harvest]
    spec: AnalysisSpec
    datasets: tuple[str, ...]

    def blocks(self) -> list[Block]:
        return [intake.block for intake in blocks(self.crosscoder, self.harvests, self.spec, self.datasets)]

    def dense(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes [token, latent], scaled inputs and errors [token, both] of a block, float64, from dense formulas."""
        cc = self.crosscoder
        x = block.x.double()
        code = torch.relu(x @ cc.W_enc.double() + cc.b_enc.double())
        if cc.keep.decoupled:
            kept = [self._kept(code, model) for model in (0, 1)]
            decoded = torch.cat([code * keep @ cc.decoder(model).double() for model, keep in enumerate(kept)], 1)
            code = code * (kept[0] | kept[1])
        else:
            threshold = cc.keep.threshold if isinstance(cc.keep, AboveThreshold) else 0.0
            code = code * (code * cc.code_norms().double() > threshold)
            decoded = code @ cc.W_dec.double()
        return code.numpy(), x.numpy(), (x - decoded - cc.b_dec.double()).numpy()

    def _kept(self, code: torch.Tensor, model: int) -> torch.Tensor:
        """Entries that a model keeps in a decoupled code, [token, latent] bool."""
        cc = self.crosscoder
        assert isinstance(cc.keep, AboveModelThresholds)
        return code * cc.decoder(model).double().norm(dim=1) > cc.keep.thresholds[model].double()

    def all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same over all blocks, and the shard of each token."""
        everything = self.blocks()
        code, x, error = (np.concatenate(part) for part in zip(*map(self.dense, everything), strict=True))
        return code, x, error, np.concatenate([block.shard.numpy() for block in everything])


def make_crosscoder(
    num_latents: int, d_model: tuple[int, int], seed: int, threshold: float | None, input_scale: tuple[float, float]
) -> Crosscoder:
    """Random rows; latents 0, 3, 6, … almost chat-only, the last two dead, the last without a base row."""
    generator = torch.Generator().manual_seed(seed)
    both = sum(d_model)
    rows = torch.randn(num_latents, both, generator=generator) / both**0.5
    rows[::3, : d_model[0]] *= 0.05
    rows[-1, : d_model[0]] = 0
    bias = 0.3 * torch.randn(num_latents, generator=generator) - 0.3
    bias[-2:] = -1e6
    return Crosscoder(
        W_enc=torch.randn(both, num_latents, generator=generator),
        b_enc=bias,
        W_dec=rows,
        b_dec=0.2 * torch.randn(both, generator=generator),
        d_model=d_model,
        variant="batch_topk",
        keep=ALL_POSITIVE if threshold is None else AboveThreshold(threshold),
        input_scale=input_scale,
    )


def make_text(rng: np.random.Generator, dataset: int, length: int) -> Text:
    roles = np.array([ROLES[min(i, 5) if i < 5 or i == length - 1 else 4] for i in range(length)], np.uint8)
    behaviours = (TaggedBehaviour("greets", 3, 4, length - 1),) if dataset == 1 and rng.random() < 0.5 else ()
    return Text(dataset, rng.integers(0, 300, length), roles, behaviours)


def make_harvest(texts: list[Text], d_both: int, rng: np.random.Generator, skip_bos: bool = True) -> Harvest:
    """Random activations of every token but the first."""
    first = int(skip_bos)
    lengths = [len(text.ids) - first for text in texts]
    return Harvest(
        texts=texts,
        x=torch.from_numpy(rng.standard_normal((sum(lengths), d_both)).astype(np.float32)),
        text=torch.arange(len(texts)).repeat_interleave(torch.tensor(lengths)),
        position=torch.cat([torch.arange(first, len(text.ids)) for text in texts]),
        role=torch.from_numpy(np.concatenate([text.roles[first:] for text in texts])),
        dataset=torch.from_numpy(np.repeat([text.dataset for text in texts], lengths).astype(np.uint8)),
    )


@pytest.fixture
def make_world() -> Callable[..., World]:
    def build(
        num_latents: int = 13,
        d_model: tuple[int, int] = (5, 5),
        seed: int = 0,
        threshold: float | None = 0.9,
        input_scale: tuple[float, float] = (0.5, 2.0),
        num_texts: int = 31,
        **spec: float,
    ) -> World:
        rng = np.random.default_rng(seed)
        texts = [make_text(rng, index % 2, int(rng.integers(6, 15))) for index in range(num_texts)]
        harvests = [make_harvest(texts[i : i + 7], sum(d_model), rng) for i in range(0, num_texts, 7)]
        short = {"max_tokens": 10_000, "num_shards": 4, "top_examples": 3, "examples_per_quantile": 2}
        settings = {**short, "uselessness_steps": 100} | spec
        return World(
            make_crosscoder(num_latents, d_model, seed, threshold, input_scale),
            harvests,
            AnalysisSpec(**settings),  # type: ignore[arg-type]
            ("documents", "chats"),
        )

    return build


@pytest.fixture(scope="session")
def tokenizer(tiny_pair: Pair) -> TextTokenizer:
    return TextTokenizer(tiny_pair.tokenizer)
