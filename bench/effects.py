"""Compare and Attribute against the forwards of the models that they are about.

A pair of random Gemma 2 in two shapes: the demo's (4 layers of width 64), and 12 layers of width 256; a crosscoder in
the middle, of whose latents 32 fire at a token of random texts. Compare runs a batch of prompts; its reference runs
both models whole on the same batch, logits included, and keeps nothing. Attribute explains the last token of a prompt
of 64 tokens: an estimate for every active latent, the exact effect of 32. One reference is a whole forward of one model
on that prompt; the other measures the same 32 latents with a plain hook and a forward each.
"""

import copy
import functools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from bench.material import AnalysisSizes, crosscoder, tokenizer
from bench.rows import Figure, Row, Target
from bench.timing import Ratio, interleave
from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import CHAT, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.effects.attribute import Attribution, Question, attribute
from crosscope_worker.effects.compare import compare
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.pair import Pair, decoder_layers


@dataclass(frozen=True)
class Sizes:
    """Sizes of a pair, its crosscoder, and the prompts."""

    hidden_size: int
    num_layers: int
    layer: int
    vocab_size: int
    num_latents: int
    num_prompts: int = 8
    num_tokens: int = 64
    num_exact: int = 32
    k: int = 32
    rounds: int = 9


CASES = {
    "demo": Sizes(64, 4, 2, 1000, 1536),
    "12 layers": Sizes(256, 12, 6, 8192, 8192, rounds=5),
}
QUICK = {"quick": Sizes(32, 4, 2, 100, 64, num_prompts=2, num_tokens=16, num_exact=4, k=4, rounds=2)}


def rows(quick: bool) -> Iterator[Row]:
    """Rows of Compare, with a crosscoder and without, and of Attribute, against forwards and hooks, for each shape."""
    for case, sizes in (QUICK if quick else CASES).items():
        subject = make_subject(sizes)
        yield from compared(case, subject, sizes, quick=quick)
        yield from attributed(case, subject, sizes, quick=quick)


def compared(case: str, subject: Subject, sizes: Sizes, *, quick: bool) -> Iterator[Row]:
    """Compare against both models whole."""
    ids = np.random.default_rng(0).integers(6, sizes.vocab_size, (sizes.num_prompts, sizes.num_tokens))
    batch, alone = torch.from_numpy(ids), Subject(subject.pair)
    works = {
        "whole": functools.partial(run_whole, subject.pair.models, batch),
        "pair": lambda: compare(alone, list(ids), 5),
        "with crosscoder": lambda: compare(subject, list(ids), 5),
    }
    took = interleave(works, sizes.rounds)
    for who in ("pair", "with crosscoder"):
        yield Row(
            name="effects",
            case=f"compare, {case}, {who}",
            sizes=vars(sizes),
            ours=Figure(1e3 * statistics.median(took[who]), "ms"),
            reference=Figure(1e3 * statistics.median(took["whole"]), "ms", "both models whole, logits included"),
            ratio=Ratio.of(took[who], took["whole"]),
            ratio_is="times as much",
            targets=() if quick else (Target("ratio", "at_most", 1.3),),
        )


def attributed(case: str, subject: Subject, sizes: Sizes, *, quick: bool) -> Iterator[Row]:
    """Attribute against one whole forward, and against a hooked forward per latent."""
    ids = np.random.default_rng(1).integers(6, sizes.vocab_size, sizes.num_tokens)
    roles = np.full(sizes.num_tokens, TokenRole.TEXT, np.uint8)
    question = Question(tokens=(sizes.num_tokens - 1,), num_exact=sizes.num_exact)
    found = attribute(subject, ids, roles, question)
    batch = torch.from_numpy(ids)[None]
    works = {
        "ours": lambda: attribute(subject, ids, roles, question),
        "whole": functools.partial(run_whole, subject.pair.models[CHAT:], batch),
        "hooks": functools.partial(run_hooks, subject, batch, found, sizes.num_exact),
    }
    took = interleave(works, sizes.rounds)
    ours = Figure(1e3 * statistics.median(took["ours"]), "ms")
    described = vars(sizes) | {"active_latents": found.num_latents}
    yield Row(
        name="effects",
        case=f"attribute, {case}, to a forward",
        sizes=described,
        ours=ours,
        reference=Figure(1e3 * statistics.median(took["whole"]), "ms", "one model whole, once"),
        ratio=Ratio.of(took["ours"], took["whole"]),
        ratio_is="times as much",
        targets=() if quick else (Target("ratio", "at_most", 8.0),),
    )
    yield Row(
        name="effects",
        case=f"attribute, {case}, to hooks",
        sizes=described,
        ours=ours,
        reference=Figure(1e3 * statistics.median(took["hooks"]), "ms", "a hooked forward per measured latent, alone"),
        ratio=Ratio.of(took["hooks"], took["ours"]),
    )


@torch.inference_mode()
def run_whole(models: tuple[Gemma2ForCausalLM, ...], ids: Tensor) -> None:
    """Runs all layers and logits."""
    for model in models:
        model(input_ids=ids, use_cache=False)


@torch.inference_mode()
def run_hooks(subject: Subject, ids: Tensor, found: Attribution, num_exact: int) -> None:
    """Takes the contributions of the first entries away by a hook, one after the other, and reads KL(chat ‖ base)."""
    assert subject.reading is not None
    made, layer = subject.reading.crosscoder, subject.reading.layer
    x = subject.activations(ids, torch.tensor([ids.shape[1]]))[0]
    code = made.encode(x)
    chat = subject.pair.models[CHAT]
    base = subject.pair.models[0](input_ids=ids, use_cache=False).logits[0, -1].log_softmax(0)
    for entry in found.entries[:num_exact]:
        taken = code[:, entry.latent, None] * made.decoder(CHAT)[entry.latent]

        def put(_module: object, _inputs: object, output: Any, taken: Tensor = taken) -> Tensor:
            return output - taken

        with decoder_layers(chat)[layer].register_forward_hook(put):
            log = chat(input_ids=ids, use_cache=False).logits[0, -1].log_softmax(0)
        float((log.exp() * (log - base)).sum())


def make_subject(sizes: Sizes) -> Subject:
    """A random model and another beside it, read by a random crosscoder."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=4 * sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=sizes.hidden_size // 4,
        query_pre_attn_scalar=sizes.hidden_size // 4,
        max_position_embeddings=512,
        sliding_window=64,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    base = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    chat = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in chat.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    manifest = PairManifest(name="random", base="base", chat="chat", tokenizer="chat")
    pair = Pair(manifest, (base, chat), tokenizer(sizes.vocab_size), torch.device("cpu"))
    made = crosscoder(AnalysisSizes(d_model=sizes.hidden_size, num_latents=sizes.num_latents, k=sizes.k))
    policy = TokenPolicy(skip_bos=False, max_norm_ratio=None)
    subject = Subject(pair, Reading(sizes.layer, made, torch.ones(sizes.num_latents), policy))
    made.keep = AboveThreshold(threshold(subject, sizes))
    # The sparsifier of a reading is worked out once.
    return Subject(pair, Reading(sizes.layer, made, torch.ones(sizes.num_latents), policy))


def threshold(subject: Subject, sizes: Sizes) -> float:
    """What k latents a token exceed, on average over the tokens of random texts of the prompt's length."""
    assert subject.reading is not None
    shape = 8, sizes.num_tokens
    ids = torch.from_numpy(np.random.default_rng(2).integers(6, sizes.vocab_size, shape))
    x = subject.activations(ids, torch.full((shape[0],), shape[1])).flatten(0, 1)
    return float(subject.reading.crosscoder.scaled(x).flatten().topk(len(x) * sizes.k).values[-1])
