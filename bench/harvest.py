"""Activations of kept tokens: `harvest` against both models run whole, and against a bare truncated forward.

Both models are random Gemma 2 with twelve layers; the activations come from the seventh (index 6). Whole: all layers
and logits, on batches padded to their longest text, in the given order. Bare: the same number of tokens in rows of one
length, without padding, through models that end at the layer. "mixed" texts have long-tailed lengths, "equal" texts a
single length.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2Model

from bench.material import tokenizer
from bench.rows import Figure, Row, Target
from bench.timing import Ratio, interleave
from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair

KEEP_ALL = TokenPolicy(skip_bos=False, max_norm_ratio=None)
"""A policy that keeps all tokens, so that the kept tokens are those of the bare forward."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    hidden_size: int = 256
    num_layers: int = 12
    layer: int = 6
    vocab_size: int = 8192
    shortest: int = 20
    longest: int = 512
    num_tokens: int = 16_384
    tokens_per_forward: int = 4096
    texts_a_batch: int = 16
    """Batch size of the models that run whole."""
    rounds: int = 5


QUICK = Sizes(32, 4, 2, 128, 4, 32, num_tokens=256, tokens_per_forward=128, texts_a_batch=4, rounds=2)


class Positions:
    """Counts the positions that reach a model's embedding, padding included."""

    def __init__(self, model: Any) -> None:
        self.seen = 0
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, _module: object, inputs: tuple[Tensor, ...], _output: object) -> None:
        self.seen += inputs[0].numel()

    def padding(self, work: Callable[[], object], num_tokens: int) -> float:
        """The share of padding among the positions on which one call of `work` runs the model."""
        self.seen = 0
        work()
        return 1 - num_tokens / self.seen


def rows(quick: bool) -> Iterator[Row]:
    """Two rows, against whole and against bare, for mixed and for equal lengths."""
    sizes = QUICK if quick else Sizes()
    torch.manual_seed(0)
    models = (Gemma2ForCausalLM(config(sizes, sizes.num_layers)), Gemma2ForCausalLM(config(sizes, sizes.num_layers)))
    short = [Gemma2Model(config(sizes, sizes.layer + 1)).eval() for _ in models]
    manifest = PairManifest(name="random", base="base", chat="chat", tokenizer="chat")
    pair = Pair(manifest, (models[0].eval(), models[1].eval()), tokenizer(sizes.vocab_size), torch.device("cpu"))
    for case, lengths in (("mixed", mixed_lengths(sizes)), ("equal", equal_lengths(sizes))):
        yield from measure(case, make_texts(lengths, sizes.vocab_size), pair, short, sizes, quick=quick)


def measure(
    case: str, texts: list[Text], pair: Pair, short: list[Gemma2Model], sizes: Sizes, *, quick: bool
) -> Iterator[Row]:
    """The rows of some texts."""
    num_tokens = sum(len(text.ids) for text in texts)
    activations, position_count = PairActivations(pair, sizes.layer), Positions(pair.models[0])
    assert activations.shares_rows, "tried once, before anything is counted"
    activations.regimes([1])

    def ours() -> None:
        kept = sum(len(one.x) for one in harvest(texts, activations, KEEP_ALL, sizes.tokens_per_forward))
        assert kept == num_tokens, f"{kept} of {num_tokens} tokens came back"

    def whole() -> None:
        run_whole(pair, texts, sizes)

    def bare() -> None:
        run_bare(short, texts, sizes)

    paddings = {"padding": position_count.padding(ours, num_tokens)}
    paddings["padding_whole"] = position_count.padding(whole, num_tokens)
    took = interleave({"ours": ours, "whole": whole, "bare": bare}, sizes.rounds)
    rate = {who: num_tokens / statistics.median(seconds) for who, seconds in took.items()}
    described = {
        "texts": len(texts),
        "tokens": num_tokens,
        "shortest": min(len(text.ids) for text in texts),
        "longest": max(len(text.ids) for text in texts),
        "hidden_size": sizes.hidden_size,
        "num_layers": sizes.num_layers,
        "layer": sizes.layer,
        "tokens_per_forward": sizes.tokens_per_forward,
    }
    references = {
        "whole": ("both models whole, padded as given", Target("ratio", "at_least", 1.8)),
        "bare": ("bare forward to the layer, full rows", Target("ratio", "at_least", 0.9)),
    }
    for who, (what, target) in references.items():
        yield Row(
            name="harvest",
            case=f"{case} lengths, to {who}",
            sizes=described | paddings,
            ours=Figure(rate["ours"], "tokens/s"),
            reference=Figure(rate[who], "tokens/s", what),
            ratio=Ratio.of(took[who], took["ours"]),
            targets=() if quick else (target,),
        )


@torch.inference_mode()
def run_whole(pair: Pair, texts: list[Text], sizes: Sizes) -> None:
    """Runs all layers and logits of both models; keeps the layer's hidden states at positions that hold text."""
    for first in range(0, len(texts), sizes.texts_a_batch):
        batch = texts[first : first + sizes.texts_a_batch]
        ids = torch.zeros(len(batch), max(len(text.ids) for text in batch), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = torch.from_numpy(text.ids)
            mask[row, : len(text.ids)] = 1
        outputs = [model(input_ids=ids, attention_mask=mask, output_hidden_states=True) for model in pair.models]
        torch.cat([output.hidden_states[sizes.layer + 1][mask.bool()] for output in outputs], dim=1)


@torch.inference_mode()
def run_bare(short: list[Gemma2Model], texts: list[Text], sizes: Sizes) -> None:
    """Runs the tokens of `texts` through truncated models, in rows of the longest text's length."""
    flat = torch.from_numpy(np.concatenate([text.ids for text in texts]))
    length = max(len(text.ids) for text in texts)
    whole_rows = flat[: len(flat) // length * length].view(-1, length).split(sizes.tokens_per_forward // length)
    rest = flat[len(flat) // length * length :].view(1, -1)
    for ids in (*whole_rows, rest):
        if ids.numel():
            outputs = [model(input_ids=ids, use_cache=False).last_hidden_state for model in short]
            torch.cat(outputs, dim=-1)


def config(sizes: Sizes, num_layers: int) -> Gemma2Config:
    """A Gemma 2 of `num_layers` layers."""
    return Gemma2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=4 * sizes.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=sizes.hidden_size // 4,
        query_pre_attn_scalar=sizes.hidden_size // 4,
        max_position_embeddings=sizes.longest,
        sliding_window=sizes.longest,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )


def mixed_lengths(sizes: Sizes) -> list[int]:
    """Long-tailed lengths: log-normal around the geometric mean of the shortest and the longest, cut at both."""
    draw = np.random.default_rng(0)
    middle = (np.log(sizes.shortest) + np.log(sizes.longest)) / 2
    lengths: list[int] = []
    while (left := sizes.num_tokens - sum(lengths)) > 0:
        length = int(np.clip(np.exp(draw.normal(middle, 0.9)), sizes.shortest, sizes.longest))
        lengths.append(min(length, max(left, sizes.shortest)))
    return lengths


def equal_lengths(sizes: Sizes) -> list[int]:
    """Lengths that all equal the longest."""
    return [sizes.longest] * (sizes.num_tokens // sizes.longest)


def make_texts(lengths: list[int], vocab_size: int) -> list[Text]:
    """Random texts behind a BOS token."""
    draw = np.random.default_rng(1)
    made: list[Text] = []
    for length in lengths:
        roles = np.full(length, TokenRole.TEXT, dtype=np.uint8)
        roles[0] = TokenRole.BOS
        made.append(Text(0, np.concatenate([[2], draw.integers(6, vocab_size, length - 1)]).astype(np.int64), roles))
    return made
