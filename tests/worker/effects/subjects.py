"""Pairs of tiny models and random crosscoders that read them."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import BASE, CHAT, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveModelThresholds, AboveThreshold
from crosscope_worker.dictionary.streams import BOTH, Streams
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.pair import Pair, decoder_layers
from tests.worker.conftest import gemma_tokenizer
from tests.worker.tiny_models import VOCAB, tiny_model

LAYER, NUM_LATENTS = 1, 40
POLICY = TokenPolicy(max_norm_ratio=None)


def make_pair(kind: str = "Llama", changed: Mapping[str, Any] | None = None, chat_vocab: int = VOCAB) -> Pair:
    """A tiny model and another of its class, moved away from it."""
    base = tiny_model(kind, **(changed or {}))
    chat = copy.deepcopy(base) if chat_vocab == VOCAB else tiny_model(kind, vocab_size=chat_vocab, **(changed or {}))
    with torch.no_grad():
        for parameter in chat.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    manifest = PairManifest(name="tiny", base="base", chat="chat", tokenizer="chat")
    return Pair(manifest, (base, chat), gemma_tokenizer(), torch.device("cpu"))


def make_crosscoder(d_model: tuple[int, int], streams: Streams = BOTH, **settings: Any) -> Crosscoder:
    """Random rows, of which about a quarter fires at a token; zeros where `streams` has nothing."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(NUM_LATENTS, sum(streams.widths(d_model)), generator=draw) / 2
    W_dec = streams.place_decoder(rows)
    bias = 0.1 * torch.randn(sum(d_model), generator=draw)
    given: dict[str, Any] = {"code_normalisation": "crosscoder", "keep": AboveThreshold(2.0)} | settings
    encoder = streams.place_encoder(rows).T.contiguous()
    return Crosscoder(encoder, torch.zeros(NUM_LATENTS), W_dec, bias, d_model, "batch_topk", streams=streams, **given)


def decoupled(d_model: tuple[int, int]) -> Crosscoder:
    """A crosscoder whose models keep entries of their own."""
    return make_crosscoder(
        d_model,
        code_normalisation="decoupled",
        keep=AboveModelThresholds(torch.tensor([[0.5], [1.0]]).expand(2, NUM_LATENTS).clone()),
    )


def make_subject(pair: Pair, crosscoder: Crosscoder | None = None, **settings: Any) -> Subject:
    crosscoder = crosscoder or make_crosscoder(pair.d_model)
    return Subject(pair, Reading(LAYER, crosscoder, torch.ones(crosscoder.num_latents), POLICY, **settings))


def prompt(num_tokens: int, seed: int = 0) -> np.ndarray:
    """Random ids behind a BOS token."""
    draw = np.random.default_rng(seed)
    return np.concatenate([[1], draw.integers(3, VOCAB, num_tokens - 1)])


def roles_of(ids: np.ndarray) -> np.ndarray:
    roles = np.full(len(ids), TokenRole.TEXT, np.uint8)
    roles[0] = TokenRole.BOS
    return roles


def stream_of(model: PreTrainedModel, ids: np.ndarray) -> Tensor:
    """[pos, d_model]: the layer's output, from a plain hook."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    with decoder_layers(model)[LAYER].register_forward_hook(keep):
        logits_of(model, ids)
    return found[0][0]


def logits_of(model: PreTrainedModel, ids: np.ndarray, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """[pos, vocabulary]: the whole model's, with the layer's output [pos, d_model] changed by a plain hook."""

    def put(_module: nn.Module, _inputs: object, output: Any) -> Any:
        assert change is not None
        if isinstance(output, Tensor):
            return change(output[0])[None]
        return (change(output[0][0])[None], *output[1:])

    text = torch.from_numpy(ids)[None]
    if change is None:
        return model(input_ids=text, use_cache=False).logits[0]
    with decoder_layers(model)[LAYER].register_forward_hook(put):
        return model(input_ids=text, use_cache=False).logits[0]


def both_streams(pair: Pair, ids: np.ndarray) -> Tensor:
    """[pos, both], from plain hooks."""
    return torch.cat([stream_of(pair.models[model], ids) for model in (BASE, CHAT)], dim=1)
