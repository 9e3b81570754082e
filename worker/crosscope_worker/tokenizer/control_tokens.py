"""Encodes texts in which some control tokens are meant and others were only typed.

A typed control token is written as a *stand-in*, private characters of the same length. A second copy of the tokenizer
reads such texts. In it, names of control tokens and their stand-ins are exchanged: the stand-in is the control token,
and the name is plain text. Names and stand-ins in the text are exchanged too before that copy encodes it. So the whole
text is encoded at once, and merges and spaces beside a typed name are those of any text.

Knows nothing about templates or roles.
"""

import copy
import json
import re
from functools import cached_property
from typing import Any, cast

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

_FIRST_STAND_IN = 0x100000
"""Stand-ins come from the last private plane of Unicode, which no template uses."""


class PromptError(ValueError):
    """A prompt that cannot be tokenised; the sentence says what to change."""


class ControlTokens:
    """The control tokens of one tokenizer, and its encoder. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._ids = {content: id_ for id_, content in special.items()}
        names = [name for name in special.values() if name]
        self._stand_ins = {name: chr(_FIRST_STAND_IN + i) * len(name) for i, name in enumerate(names)}
        self._swapped = self._stand_ins | {stand_in: name for name, stand_in in self._stand_ins.items()}
        self._names = _any_of(names)
        self._either = _any_of(list(self._swapped))
        self._reserved = re.compile(f"[{chr(_FIRST_STAND_IN)}-{chr(_FIRST_STAND_IN + len(names))}]")
        # A copy of its own, since truncation, padding and the reading of control tokens are states of the backend.
        self.reading = _copy(cast("Tokenizer", tokenizer.backend_tokenizer))
        """The tokenizer as its own call encodes."""
        self.reading.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))

    def found_in(self, text: str) -> bool:
        """Whether a control token's name stands in a text."""
        return self._names.search(text) is not None

    def disguise(self, value: Any, kept: tuple[str, ...] = ()) -> Any:
        """The same plain JSON value with stand-ins for the names of control tokens, except those `kept`.

        Raises PromptError for texts with characters that stand-ins are made of.
        """
        if isinstance(value, str):
            if taken := self._reserved.search(value):
                raise PromptError(
                    f"the text holds the private character U+{ord(taken[0]):X} beside the name of a control token; "
                    "remove one of them"
                )
            return self._names.sub(lambda name: name[0] if name[0] in kept else self._stand_ins[name[0]], value)
        if isinstance(value, dict):
            return {key: self.disguise(each, kept) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.disguise(each, kept) for each in value]
        return value

    def encode(self, text: str, is_disguised: bool, add_special_tokens: bool = False) -> Encoding:
        """Encodes a text; where it is disguised, stand-ins are read as text and names as control tokens.

        Offsets count characters of `text`. Raises PromptError for a lone surrogate.
        """
        backend = self.reading
        if is_disguised:
            backend, text = self._exchanged, self._either.sub(lambda found: self._swapped[found[0]], text)
        try:
            # Unlike encode, encode_batch lets other threads run: the one that keeps the device busy, above all.
            return backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        except (TypeError, UnicodeEncodeError) as error:
            raise PromptError("the text holds a lone surrogate, which is no character; remove it") from error

    @cached_property
    def _exchanged(self) -> Tokenizer:
        """The tokenizer in which control tokens have the names of their stand-ins."""
        document = json.loads(self.reading.to_str())
        for token in document["added_tokens"]:
            token["content"] = self._stand_ins.get(token["content"], token["content"])
        _rename(document["model"], self._stand_ins)
        exchanged = Tokenizer.from_str(json.dumps(document))
        if any(exchanged.token_to_id(self._stand_ins[name]) != self._ids[name] for name in self._stand_ins):
            raise PromptError(
                "this tokenizer cannot read the names of control tokens as text; remove them, or have them parsed as "
                "control tokens"
            )
        return exchanged


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Renames tokens of a model's vocabulary. Ids stay."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            merge for merge in model["merges"] if not {*merge[:2], f"{merge[0]}{merge[1]}"} & names.keys()
        ]


def _any_of(names: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def _copy(backend: Tokenizer) -> Tokenizer:
    copied = copy.deepcopy(backend)
    copied.no_truncation()
    copied.no_padding()
    return copied
