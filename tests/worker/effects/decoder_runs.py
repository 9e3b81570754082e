"""Crosscoders of random weights, orders, and a loop that runs a decoder to its end."""

from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedModel

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import Keep
from crosscope_worker.dictionary.streams import BOTH, Streams
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.orders import ArmOrder, Ended, Event, Order, Token
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer

CACHE_BYTES = 1 << 26
LATENTS = 24
LAYER = 1


def with_models(pair: Pair, base: PreTrainedModel, chat: PreTrainedModel) -> Pair:
    """Another pair with the same tokenizer."""
    return Pair(
        PairManifest(name="other", base="b", chat="c", tokenizer="c"), (base, chat), pair.tokenizer, pair.device
    )


def random_crosscoder(
    pair: Pair, keep: Keep, code_normalisation: str = "crosscoder", streams: Streams = BOTH, scale: float = 0.3
) -> Crosscoder:
    both = sum(pair.d_model)
    generator = torch.Generator().manual_seed(3)
    W_dec = scale * torch.randn(LATENTS, both, generator=generator)
    W_enc = 0.2 * torch.randn(LATENTS, both, generator=generator).T
    b_enc = 0.1 * torch.randn(LATENTS, generator=generator)
    b_dec = torch.zeros(both)
    return Crosscoder(W_enc, b_enc, W_dec, b_dec, pair.d_model, "random", code_normalisation, streams, keep, (1.5, 0.5))


def reading_of(
    crosscoder: Crosscoder, bounds: NormBounds | None = None, layer: int = LAYER, policy: TokenPolicy | None = None
) -> Reading:
    maxima = torch.linspace(0.5, 2.0, crosscoder.num_latents)
    return Reading(layer, crosscoder, maxima, policy or TokenPolicy(), bounds)


def prompt(tokenizer: TextTokenizer, text: str, *arms: ArmOrder, with_code: bool = False) -> Order:
    tokens = tokenizer.text(text)
    return Order(tokens.ids, tokens.roles, arms, tokenizer, with_code)


def run(decoder: Decoder, *orders: Order, later: Mapping[int, Callable[[], None]] | None = None) -> list[Event]:
    """Admits orders and steps until nothing is left; `later` happens before the steps of these numbers."""
    for order in orders:
        decoder.admit(order)
    events: list[Event] = []
    number = 0
    while not decoder.is_idle or (later and number <= max(later)):
        if later and number in later:
            later[number]()
        events += decoder.step()
        number += 1
        assert number < 2000
    return events


def ids_of(events: list[Event], order: Order, arm: int = 0, sample: int = 0) -> list[int]:
    return [
        event.id
        for event in events
        if isinstance(event, Token) and event.order is order and (event.arm, event.sample) == (arm, sample)
    ]


def end_of(events: list[Event], order: Order, arm: int = 0, sample: int = 0) -> Ended:
    found = [
        event
        for event in events
        if isinstance(event, Ended) and event.order is order and (event.arm, event.sample) == (arm, sample)
    ]
    assert len(found) == 1
    return found[0]


def subject(pair: Pair, crosscoder: Crosscoder, bounds: NormBounds | None = None) -> Subject:
    return Subject(pair, reading_of(crosscoder, bounds))
