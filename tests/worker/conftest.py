"""A tiny Gemma 2 pair with Gemma's chat template, made once a session and saved through save_pretrained."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest
from crosscope_worker.models.pair import Pair, load_pair

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
TURN_TOKENS = ("<start_of_turn>", "<end_of_turn>")
WORDS = (
    "the baker in the village makes fresh bread every morning and sells it at the market",
    "tell me a short story about the red fox and the old river please",
    "sorry, i can not help with that. i hope this helps, have a nice day!",
    "user model what is two plus three? two plus three is five.",
)


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-fallback BPE tokenizer that marks spaces as Gemma's does, with Gemma's template and control tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL_TOKENS, *TURN_TOKENS, *bytes_, "\n"], show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    learned = json.loads(tokenizer.to_str())
    learned["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(learned))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIAL_TOKENS, *TURN_TOKENS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=GEMMA_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def make_gemma() -> Callable[..., Gemma2ForCausalLM]:
    """Makes a random Gemma 2 of four layers, two of them with a sliding window of 8 tokens."""
    return random_gemma


def random_gemma(vocab_size: int, hidden_size: int = 32) -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=256,
        sliding_window=8,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    return Gemma2ForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair's folder named "tiny" below pairs/ of a home folder: base/, chat/ and pair.json with relative folders.

    The chat model is the base model with its weights moved a little.
    """
    folder = tmp_path_factory.mktemp("home") / "pairs" / "tiny"
    tokenizer = gemma_tokenizer()
    torch.manual_seed(0)
    base = random_gemma(len(tokenizer))
    base.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    base.save_pretrained(folder / "chat")
    for model in ("base", "chat"):
        tokenizer.save_pretrained(folder / model)
    manifest = PairManifest(name="tiny", base="base", chat="chat", tokenizer="chat")
    (folder / PAIR_MANIFEST).write_text(json.dumps(asdict(manifest)))
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tiny_pair_folder: Path) -> Pair:
    """That pair, loaded."""
    chat = str(tiny_pair_folder / "chat")
    return load_pair(PairManifest(name="tiny", base=str(tiny_pair_folder / "base"), chat=chat, tokenizer=chat))
