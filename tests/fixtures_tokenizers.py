"""Small tokenizers of every kind that causal language models have, trained on a few sentences."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SENTENCES = (
    "About the red fox and the old river, please tell me a short story.",
    "<s> <think> user [INST] assistant </think> 12 + 3 = 15\n\nThat is fifteen, s > t.",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B ▁ < > / [ ] | _ . , ! ? \n",
)
CONTROL = ("<pad>", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] | trim + ' ' + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
SCHEMES = ("first", "always", "never")


def metaspace(scheme: str) -> Callable[[Tokenizer], None]:
    def shape(tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "never")  # pyright: ignore[reportArgumentType]
        parts = [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()]  # pyright: ignore[reportArgumentType]
        tokenizer.decoder = decoders.Sequence(parts)

    return shape


def byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def byte_level_with_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()


def whitespace(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def marked_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def prepended(tokenizer: Tokenizer) -> None:
    """As Llama's tokenizers of old: a normaliser puts the space in front."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def bert(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()


def _trained(kind: str, shape: Callable[[Tokenizer], None]) -> Tokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    falls_back = kind in ("byte-fallback", "characters")
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=list(CONTROL), unk_token="<unk>", **_quiet())
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=list(CONTROL), **_quiet())
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=falls_back, fuse_unk=True))
        more = bytes_ if falls_back else []
        alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "byte-level" else []
        size = 1 if kind == "characters" else 460
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*CONTROL, *more],
            initial_alphabet=alphabet,
            **_quiet(),
        )
    shape(tokenizer)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    learned = json.loads(tokenizer.to_str())
    learned["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(learned))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def _quiet() -> dict[str, Any]:
    return {"show_progress": False}


KINDS: dict[str, tuple[str, Callable[[Tokenizer], None]]] = {
    "bpe": ("bpe", whitespace),
    "byte-level": ("byte-level", byte_level),
    "byte-level with space": ("byte-level", byte_level_with_space),
    "byte-fallback": ("byte-fallback", marked_spaces),
    "characters": ("characters", marked_spaces),
    "byte-fallback prepended": ("byte-fallback", prepended),
    "wordpiece": ("wordpiece", bert),
    **{f"byte-fallback {scheme}": ("byte-fallback", metaspace(scheme)) for scheme in SCHEMES},
    **{f"unigram {scheme}": ("unigram", metaspace(scheme)) for scheme in SCHEMES},
}
AROUND = {"nothing": "$A", "bos": "<s> $A", "bos and eos": "<s> $A </s>", "eos": "$A </s>"}
NAMES = [*KINDS, "llama"]


@cache
def _of_kind(kind: str) -> Tokenizer:
    return _trained(*KINDS[kind])


@cache
def tokenizer_of(kind: str, around: str, template: str = CHATML) -> PreTrainedTokenizerBase:
    """A tokenizer of a kind, that puts control tokens around a text, with a chat template."""
    if kind == "llama":
        model = json.loads(_of_kind("byte-fallback first").to_str())["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        return LlamaTokenizer(
            vocab=model["vocab"],
            merges=merges,  # pyright: ignore[reportArgumentType]
            add_bos_token="bos" in around,
            add_eos_token="eos" in around,
            extra_special_tokens=list(CONTROL[4:]),
            chat_template=template,
            **SPECIAL,
        )
    backend = Tokenizer.from_str(_of_kind(kind).to_str())
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=AROUND[around], special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, clean_up_tokenization_spaces=False, **SPECIAL
    )
