"""The activation rule of a published crosscoder: what its configurations say, before any family is chosen.

A rule is ReLU, JumpReLU, the k largest of a token (topk) or of a batch (batchtopk). Every configuration is asked;
a rule that is not known and rules that contradict each other are refused by name. Knows no family's tensors.
"""

from dataclasses import dataclass
from typing import Any

from crosscope_worker.dictionary.keep import LargestByModel, LargestOfToken
from crosscope_worker.dictionary.published.configs import Said
from crosscope_worker.dictionary.published.files import Files

RELU, JUMPRELU, TOPK, BATCH_TOPK = "relu", "jumprelu", "topk", "batchtopk"
KNOWN = (RELU, JUMPRELU, TOPK, BATCH_TOPK)
_WORD_KEYS = ("act_fn", "activation", "activation_fn", "activation_fn_str", "activation_function", "classname")
_CLASS_KEYS = ("dict_class", "architecture")
_COUNT_KEYS = ("k", "top_k", "topk", "k_per_example")
_ALIASES = {
    "reluactivation": RELU,
    "l1": RELU,
    "anthropicjumpreluactivation": JUMPRELU,
    "jumpreluactivation": JUMPRELU,
    "topkactivation": TOPK,
    "batchtopkactivation": BATCH_TOPK,
}
_CLASSES = {
    "crosscoder": RELU,
    "autoencoder": RELU,
    "autoencodernew": RELU,
    "jumpreluautoencoder": JUMPRELU,
    "autoencodertopk": TOPK,
    "batchtopksae": BATCH_TOPK,
    "matryoshkabatchtopksae": BATCH_TOPK,
    "batchtopkcrosscoder": BATCH_TOPK,
}
"""dict_class of the dictionary_learning forks."""
_UNSAID = ("standard", "crosscoder", "acausalcrosscoder", "dfc", "dfccrosscoder", "sae")
"""Architectures that do not tell the rule."""


@dataclass(frozen=True)
class Rule:
    """What the configurations say."""

    name: str | None
    """One of KNOWN, or None where no configuration says one."""
    counts: tuple[Said, ...]
    """Every k that stands in a configuration."""
    said: str
    """The sentence that names the rule, for messages."""


def find_rule(files: Files) -> Rule:
    """The rule that the configurations beside the weights agree on.

    Raises CrosscoderError for an unknown rule and for a contradiction.
    """
    found: dict[str, Said] = {}
    for each in [*files.said(*_WORD_KEYS), *files.said(*_CLASS_KEYS)]:
        if isinstance(each.value, dict):
            continue  # Its own words are among those asked for.
        if (name := _name(files, each)) is not None:
            found.setdefault(name, each)
    if found.keys() == {RELU, JUMPRELU} and found[RELU].key.rpartition(".")[2].startswith("activation_fn"):
        del found[RELU]  # SAELens writes "relu" there for the part of a JumpReLU that is one.
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise files.error(f"{one} and {other} contradict each other: two activation rules")
    counts = tuple(each for each in files.said(*_COUNT_KEYS) if not isinstance(each.value, dict))
    for each in counts:
        if isinstance(each.value, bool) or not isinstance(each.value, int):
            raise files.error(f"{each}, which is no number of latents")
    name, said = next(iter(found.items())) if found else (None, "no configuration says an activation rule")
    # In the OpenMOSS configurations top_k stands beside every rule, with its default.
    if name == RELU and (other := [each for each in counts if each.key.rpartition(".")[2] != "top_k"]):
        raise files.error(f"{said} and {other[0]} contradict each other: ReLU keeps no k")
    return Rule(name, counts, str(said))


def _name(files: Files, each: Said) -> str | None:
    key = each.key.rpartition(".")[2]
    word = _plain(each.value)
    if key == "dict_class":
        known: dict[str, Any] = {**_CLASSES}
    else:
        known = {rule: rule for rule in KNOWN} | _ALIASES
        if key == "architecture":
            known |= dict.fromkeys(_UNSAID)
    if word not in known:
        raise files.error(f"{each.file}: {key} {each.value!r} is not known; known activation rules are {_words(known)}")
    return known[word]


def _plain(value: object) -> str:
    return str(value).lower().replace("_", "").replace("-", "").replace(" ", "")


def _words(known: dict[str, Any]) -> str:
    return ", ".join(known)


def count(files: Files, rule: Rule, latents: int) -> int | None:
    """k: the tensor's, else what the configurations agree on; None where nothing says one.

    A configuration that says another k than the tensor is noted: the forks write a default there. Raises
    CrosscoderError for a contradiction between configurations, and for a k that is not between 1 and `latents`.
    """
    if "k" in files.tensors:
        k = int(files.tensor("k", (), (1,)))
        if other := [each for each in rule.counts if each.value != k]:
            files.note(f"The tensor says k {k}; {other[0]}, which is ignored.")
    elif rule.counts:
        k = rule.counts[0].value
        if other := [each for each in rule.counts if each.value != k]:
            raise files.error(f"{rule.counts[0]} and {other[0]} contradict each other")
    else:
        return None
    if not 0 < k <= latents:
        raise files.error(f"k is {k}, but there are {latents} latents")
    return k


def token_k(files: Files, rule: Rule, latents: int, *, decoupled: bool = False) -> dict[str, Any]:
    """The fields of a code that keeps the k largest of each token; a note tells of another rule in the file.

    BatchTopK chooses among a batch, which inference does not have; without a threshold the k largest of each token are
    what it keeps of a batch of one. Raises CrosscoderError where nothing says k.
    """
    if (k := count(files, rule, latents)) is None:
        raise files.error(f"{rule.said}, but no configuration and no tensor says k")
    if rule.name == BATCH_TOPK:
        files.note(
            f"{rule.said}, and the file holds no threshold: the {k} largest of each token are kept, as that rule does "
            "in a batch of one token. In larger batches it gave some tokens more and others fewer."
        )
    elif rule.name is None:
        files.note(f"No configuration says an activation rule, but k is {k}: the {k} largest of each token are kept.")
    return {"variant": "topk", "keep": LargestByModel(k) if decoupled else LargestOfToken(k)}
