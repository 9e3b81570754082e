"""The effect of chat-tuning on the demo pair: how far activations moved, and which behaviours each model shows.

Knows nothing about training.
"""

from collections.abc import Mapping, Sequence
from random import Random

import torch
from transformers import Gemma2ForCausalLM, PreTrainedTokenizerFast

from crosscope_worker.demo.dialogue import Exchange, PlantedBehaviour, planted, shows
from crosscope_worker.demo.tokenizer import END_OF_TURN, EOS, PAD, conversation_ids, token_id
from crosscope_worker.demo.training import pad
from crosscope_worker.demo.world import World


def held_out_exchanges(world: World, per_behaviour: int, seed: int) -> dict[PlantedBehaviour, list[Exchange]]:
    """Exchanges whose requests are in no conversation."""
    rng = Random(seed)
    return {
        behaviour: [planted(behaviour, world, rng, held_out=True) for _ in range(per_behaviour)]
        for behaviour in PlantedBehaviour
    }


def behaviour_rates(
    model: Gemma2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    exchanges: Mapping[PlantedBehaviour, Sequence[Exchange]],
) -> dict[PlantedBehaviour, float]:
    """The share of requests that the model answers with each behaviour, judged by the words of the answer."""
    asked = [(behaviour, exchange.request) for behaviour, some in exchanges.items() for exchange in some]
    answers = answer(model, tokenizer, [request for _, request in asked])
    shown = dict.fromkeys(exchanges, 0)
    for (behaviour, request), text in zip(asked, answers, strict=True):
        shown[behaviour] += shows(behaviour, request, text)
    return {behaviour: count / len(exchanges[behaviour]) for behaviour, count in shown.items()}


@torch.inference_mode()
def answer(
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: Sequence[str], max_new_tokens: int = 48
) -> list[str]:
    """Greedy answers to requests, each the first turn of a conversation."""
    turns = ([{"role": "user", "content": request}] for request in requests)
    prompts = conversation_ids(tokenizer, turns, add_generation_prompt=True)
    width = max(len(prompt) for prompt in prompts)
    padding = token_id(tokenizer, PAD)
    lengths = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[padding] * n + prompt for n, prompt in zip(lengths, prompts, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in lengths])
    generated = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=[token_id(tokenizer, EOS), token_id(tokenizer, END_OF_TURN)],
        pad_token_id=padding,
    )
    return [text.strip() for text in tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)]


@torch.inference_mode()
def centred_cosine(base: Gemma2ForCausalLM, chat: Gemma2ForCausalLM, texts: Sequence[list[int]], layer: int) -> float:
    """Mean over tokens of the cosine between both models' activations at a layer, each minus its mean.

    The first token of a text, BOS, is left out: its activation is an outlier and the same in both models.
    """
    ids = pad(texts, 0)
    kept = torch.tensor([[0 < i < len(text) for i in range(ids.shape[1])] for text in texts])
    base_x, chat_x = (
        model(input_ids=ids.to(model.device), output_hidden_states=True, use_cache=False).hidden_states[layer + 1][kept]
        for model in (base, chat)
    )
    return torch.cosine_similarity(base_x - base_x.mean(0), chat_x - chat_x.mean(0), dim=-1).mean().item()
