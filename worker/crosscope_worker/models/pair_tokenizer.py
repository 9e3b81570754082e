"""The tokenizers of a pair: loaded, and compared, for both models must read the same ids. Knows no models."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from crosscope_proto.artefacts import PairManifest
from crosscope_worker.models.places import TOKENIZER_FILES, PairError, Place, check_folder, tokenizer_place
from crosscope_worker.work import is_out_of_memory

_LISTED = 20
"""Differences of tokenizers that a message lists."""


def load_tokenizer(place: Place, pair: str) -> PreTrainedTokenizerBase:
    """The tokenizer at a place. Raises PairError that names the pair, and why there is none."""
    source, revision = place
    check_folder(source, "tokenizer", pair)
    local = Path(source).is_absolute()
    if local and not any((Path(source) / name).exists() for name in TOKENIZER_FILES):
        raise PairError(f"pair {pair!r}: there is no tokenizer.json in {source}; save the tokenizer there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=local)
    except Exception as error:  # tokenizers raises Exception itself for a damaged file
        if is_out_of_memory(error):
            raise
        raise PairError(f"pair {pair!r}: no tokenizer can be loaded from {place}: {sentence(error)}") from error
    if not tokenizer.is_fast:
        raise PairError(f"pair {pair!r}: the tokenizer of {place} has no fast version, which token offsets need")
    return tokenizer


def token_differences(manifest: PairManifest, tokenizers: dict[Place, PreTrainedTokenizerBase]) -> list[str]:
    """A sentence for every token that another tokenizer of the pair names differently.

    Raises PairError if tokens differ that are not special, or if `token_names` allows no difference.
    """
    shared = tokenizer_place(manifest)
    tokens = {id_: token for token, id_ in tokenizers[shared].get_vocab().items()}
    special = tokenizers[shared].added_tokens_decoder.keys()
    found: list[str] = []
    for place, tokenizer in tokenizers.items():
        own = {id_: token for token, id_ in tokenizer.get_vocab().items()}
        different = sorted({id_ for id_, _ in own.items() ^ tokens.items()})
        usual = special & tokenizer.added_tokens_decoder.keys() | special - own.keys()
        usual |= tokenizer.added_tokens_decoder.keys() - tokens.keys()
        if plain := [id_ for id_ in different if id_ not in usual]:
            name = tokens.get(plain[0], own.get(plain[0]))
            raise PairError(
                f"pair {manifest.name!r}: the tokenizers of {place} and {shared} have different vocabularies "
                f"({len(own)} and {len(tokens)} tokens, first different at id {plain[0]}: {name!r}); "
                "both models must read the same ids"
            )
        found += [f"id {id_}: {_named(tokens, id_)} is {_named(own, id_)} in {place}" for id_ in different]
    if found and manifest.token_names is None:
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise PairError(
            f"pair {manifest.name!r}: the tokenizers differ in special tokens ({'; '.join(found[:_LISTED])}{more}); "
            "if both models may still read the same ids, set pair.tokenizer to base or chat, whose names then count"
        )
    return found


def _named(tokens: dict[int, str], id_: int) -> str:
    return repr(tokens[id_]) if id_ in tokens else "none"


def sentence(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
