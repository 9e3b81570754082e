"""The material for benches of the analysis: a crosscoder whose codes have k latents a token, texts, and activations.

Everything is random, from fixed seeds. Does not know what is measured.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from crosscope_proto.roles import TokenRole
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold

DATASETS = ("documents", "chats")
VOCAB_SIZE = 1000


@dataclass(frozen=True)
class AnalysisSizes:
    """Sizes of a dictionary, and of the texts on which it is measured."""

    d_model: int = 256
    num_latents: int = 8192
    k: int = 32
    num_texts: int = 96
    longest: int = 192
    """Tokens of the longest text; the shortest has a quarter of it."""
    rounds: int = 5

    def described(self) -> dict[str, object]:
        """The sizes for a row of the report."""
        return {"d_model": [self.d_model] * 2, "num_latents": self.num_latents, "k": self.k}


QUICK = AnalysisSizes(d_model=16, num_latents=128, k=4, num_texts=12, longest=40, rounds=2)


def crosscoder(sizes: AnalysisSizes) -> Crosscoder:
    """A crosscoder with random unit rows per model, and a threshold that k latents a token exceed on `held_out`."""
    draw = torch.Generator().manual_seed(0)
    both = 2 * sizes.d_model
    rows = torch.randn(sizes.num_latents, both, generator=draw)
    halves = [torch.nn.functional.normalize(half, dim=1) for half in rows.split(sizes.d_model, dim=1)]
    decoder = torch.cat(halves, 1)
    made = Crosscoder(
        W_enc=decoder.clone().T,
        b_enc=torch.zeros(sizes.num_latents),
        W_dec=decoder,
        b_dec=torch.zeros(both),
        d_model=(sizes.d_model, sizes.d_model),
        variant="batch_topk",
        keep=AboveThreshold(0.0),
    )
    scaled = made.scaled(torch.randn(512, both, generator=draw))
    made.keep = AboveThreshold(float(torch.topk(scaled.reshape(-1), 512 * sizes.k).values[-1]))
    return made


def held_out(sizes: AnalysisSizes) -> Harvest:
    """Texts, in turn from each of DATASETS, and normally distributed activations of all their tokens."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(sizes.longest // 4, sizes.longest + 1, sizes.num_texts)
    texts = [
        Text(index % len(DATASETS), draw.integers(0, VOCAB_SIZE, length), np.full(length, TokenRole.TEXT, np.uint8))
        for index, length in enumerate(lengths)
    ]
    return Harvest(
        texts=texts,
        x=torch.randn(int(lengths.sum()), 2 * sizes.d_model, generator=torch.Generator().manual_seed(1)),
        text=torch.from_numpy(np.repeat(np.arange(len(texts)), lengths)),
        position=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        role=torch.from_numpy(np.concatenate([text.roles for text in texts])),
        dataset=torch.from_numpy(np.repeat([text.dataset for text in texts], lengths).astype(np.uint8)),
    )


def tokenizer(vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A tokenizer with that many words."""
    words = {"<unk>": 0} | {f"word{index}": index for index in range(1, vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False)
