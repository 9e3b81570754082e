"""The demo's tokenizer: a small BPE with byte fallback, Gemma's control tokens and Gemma's chat template.

Any text can be encoded: what no merge covers falls back to its UTF-8 bytes. Knows nothing about the world's content.
"""

import json
from collections.abc import Iterable, Sequence
from typing import cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
CONTROL_TOKENS = (PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN)
"""Control tokens in the order of their ids."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
    {{- raise_exception('System role not supported') -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""
"""The format of Gemma 2: roles user and model, trimmed contents, no system message."""

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_NUM_MERGED = 1500
_WORDS = Regex(r"▁?\p{L}+|▁?\p{N}|\n|▁?[^\p{L}\p{N}▁\n]|▁+")
_HEADERS = ("user\n", "model\n") * 100
"""Texts that the tokenizer also learns, so that each role is one token."""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer fitted to texts: control tokens, 256 bytes and at most 1 500 pieces of words."""
    trained = _bpe(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=_NUM_MERGED, min_frequency=5, show_progress=False)
    trained.train_from_iterator([*texts, *_HEADERS], trainer)
    model = json.loads(trained.to_str())["model"]
    entries = [*CONTROL_TOKENS, *_BYTES, *sorted(model["vocab"], key=model["vocab"].__getitem__)]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    merges = [tuple(merge) for merge in model["merges"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=_bpe(models.BPE(vocabulary, merges, byte_fallback=True, unk_token=UNK, fuse_unk=True)),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens=[START_OF_TURN, END_OF_TURN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, each with BOS first."""
    return cast("list[list[int]]", tokenizer(list(texts))["input_ids"])


def conversation_ids(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterable[list[dict[str, str]]],
    *,
    add_generation_prompt: bool = False,
) -> list[list[int]]:
    """The ids of conversations of {"role", "content"} in the chat template."""
    rows = tokenizer.apply_chat_template(
        list(conversations), add_generation_prompt=add_generation_prompt, return_dict=False
    )
    return cast("list[list[int]]", rows)


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a token."""
    return cast("int", tokenizer.convert_tokens_to_ids(token))


def _bpe(model: models.BPE) -> Tokenizer:
    bpe = Tokenizer(model)
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(_WORDS, behavior="isolated")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if (bos := bpe.token_to_id(BOS)) is not None:
        bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
        )
    return bpe
