"""What sections work on: a random pair of Gemma 2's shape, its tokenizer, and texts. All from fixed seeds.

Does not know what is measured.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bench.gpu.rows import Run
from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import TokenRole
from crosscope_worker.data.texts import Text
from crosscope_worker.models.pair import Pair

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
_TURNS = ("<start_of_turn>", "<end_of_turn>")
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_CONSONANTS = (*"bcdfghjklmnprstvwz", "st", "tr", "pl", "gr", "ch", "sh")
_VOWELS = (*"aeiou", "ai", "ea", "ou")


def gemma_config(run: Run, num_layers: int | None = None) -> Gemma2Config:
    """Gemma 2 2B's configuration; with --dry a tiny one of four layers."""
    shape = {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    }
    if run.dry:
        shape |= {
            "vocab_size": 4096,
            "hidden_size": run.sizes.d_model,
            "intermediate_size": 4 * run.sizes.d_model,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 512,
        }
    if num_layers is not None:
        shape["num_hidden_layers"] = num_layers
    return Gemma2Config(
        **shape,
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )


def models_of(run: Run, dtype: torch.dtype = torch.bfloat16) -> tuple[Gemma2ForCausalLM, Gemma2ForCausalLM]:
    """Two random Gemma 2, made on the device; the chat model's weights lie near the base model's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    made: list[Gemma2ForCausalLM] = []
    try:
        with torch.device(run.device):
            for seed in (0, 1):
                torch.manual_seed(seed)
                made.append(Gemma2ForCausalLM(gemma_config(run)).eval().requires_grad_(False))
    finally:
        torch.set_default_dtype(before)
    base, chat = made
    for mine, other in zip(chat.parameters(), base.parameters(), strict=True):
        mine.mul_(0.5).add_(other)
    return base, chat


def gemma_pair(
    run: Run, tokenizer: PreTrainedTokenizerBase, long_rows: bool = False, dtype: torch.dtype = torch.bfloat16
) -> Pair:
    """These two models as `load_pair` leaves them."""
    both = models_of(run, dtype)
    name = str(dtype).removeprefix("torch.")
    manifest = PairManifest(name="random", base="base", chat="chat", tokenizer="chat", dtype=name)
    return Pair(manifest, both, tokenizer, run.device, long_rows)


def gemma_tokenizer(vocab_size: int = 8000) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE tokenizer of Gemma's kind, with its turns and a chat template, learned on `sentences`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [*_SPECIAL, *_TURNS, *[f"<0x{byte:02X}>" for byte in range(256)], "\n"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences(lengths(100_000, 5), 5), trainer)
    learned = json.loads(tokenizer.to_str())
    learned["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(learned))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*_SPECIAL, *_TURNS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def lengths(total: int, seed: int = 0, low: int = 20, high: int = 1024) -> list[int]:
    """Log-normal lengths from `low` to `high` whose sum is at least `total`."""
    draw = np.random.default_rng(seed)
    middle = (np.log(low) + np.log(high)) / 2
    made: list[int] = []
    left = total
    while left > 0:
        made.append(int(np.clip(np.exp(draw.normal(middle, 0.9)), low, high)))
        left -= made[-1]
    return made


def texts(of_lengths: Sequence[int], vocab_size: int, seed: int = 1) -> list[Text]:
    """Texts of random tokens behind <bos>, of these lengths."""
    draw = np.random.default_rng(seed)
    made: list[Text] = []
    for length in of_lengths:
        ids = draw.integers(6, vocab_size, length)
        roles = np.full(length, TokenRole.TEXT, np.uint8)
        ids[0], roles[0] = 2, TokenRole.BOS
        made.append(Text(0, ids, roles))
    return made


def words(count: int = 40_000) -> list[str]:
    """Different pronounceable words."""
    draw = np.random.default_rng(0)
    made: dict[str, None] = {}
    while len(made) < count:
        syllables = 1 + min(4, int(draw.geometric(0.5)))
        drawn = draw.random((syllables, 2)) * (len(_CONSONANTS), len(_VOWELS))
        made["".join(_CONSONANTS[int(first)] + _VOWELS[int(second)] for first, second in drawn)] = None
    return list(made)


def sentences(of_lengths: Sequence[int], seed: int) -> list[str]:
    """Texts of so many words each, Zipf-distributed, with commas and full stops."""
    draw = np.random.default_rng(seed)
    vocabulary = np.array(words())
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    total = sum(of_lengths)
    places = np.searchsorted(np.cumsum(weights / weights.sum()), draw.random(total)).clip(max=len(vocabulary) - 1)
    ends = np.select([(end := draw.random(total)) < 0.07, end < 0.12], [". ", ", "], " ")
    drawn = np.char.add(vocabulary[places], ends)
    cuts = np.cumsum(of_lengths)[:-1]
    return ["".join(each).strip() for each in np.split(drawn, cuts)]


def write_corpus(home: Path, num_words: int, seed: int = 1) -> None:
    """Writes docs.jsonl ({"text"}) and chats.jsonl ({"conversation"}) into `home`, about half of the words in each."""
    documents = sentences(lengths(num_words // 2, seed, 15, 900), seed)
    with (home / "docs.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    turns = sentences(lengths(num_words // 2, seed + 1, 10, 500), seed + 1)
    with (home / "chats.jsonl").open("w", encoding="utf-8") as file:
        for asked, answered in zip(turns[::2], turns[1::2], strict=False):
            turn = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            file.write(json.dumps({"conversation": turn}) + "\n")
