"""What an explainer is asked, and how its answers are read. Pure functions on texts.

A text stands as one JSON string in its line, so that nothing in it can look like the rest of the request.
"""

import json
import re
from collections.abc import Sequence

from crosscope_proto.label_specs import MAX_LABEL
from crosscope_proto.labels import has_something_to_see
from crosscope_worker.labelling.examples import MARKS, Window

Messages = tuple[tuple[str, str], ...]
"""Turns: role and content."""

_MARKED = f"between {MARKS[0]} and {MARKS[1]}"
_EXPLAIN = f"""A feature of a language model fires on some tokens of a text. Below are texts on which it fires, each \
as a JSON string, the strongest first. The tokens on which it fires most stand {_MARKED}; the number before a text \
says how strongly it fires there, from 1 to 10.

Find what these tokens, or the texts about them, have in common: a word, a topic, a form, or what the speaker does. Be \
as specific as the texts allow, and do not name the marks. You may think in a few sentences. Then end with one line:
LABEL: a phrase of at most 15 words
"""
_LABEL_AGAIN = "This has no line that begins with LABEL: and names what the texts have in common. Give that line alone."
_DETECTION = "Does the description fit something in the text?"
_FUZZING = f"Some tokens stand {_MARKED}. Are these the tokens that the description is about?"
_LIST = """Answer with a JSON list of {count} numbers in the order of the texts, 1 for yes and 0 for no, such as \
{example}, and nothing else."""
_LIST_AGAIN = "This is no JSON list of {count} numbers, each 0 or 1. Give that list alone."
_AROUND = " \"'`*“”"
"""Characters that a label may stand between."""
_YES_NO = "Answer with Yes or No."
_REFUSALS = re.compile(r"^\W*(i(['’]?m| am) (sorry|unable|not able)|sorry,|i can(['’]?t| ?not)\b)", re.IGNORECASE)
QUESTIONS = {"detection": _DETECTION, "fuzzing": _FUZZING}


def explain(windows: Sequence[Window]) -> Messages:
    """The request for a label from marked texts."""
    lines = [f"{_strength(window)}: {_quoted(window.shown)}" for window in windows]
    return (("user", "\n".join([_EXPLAIN, *lines])),)


def again(asked: Messages, answer: str, *, num_texts: int | None = None) -> Messages:
    """The request once more, after an answer that could not be read; of `num_texts` judgements, or of a label."""
    said = _LABEL_AGAIN if num_texts is None else _LIST_AGAIN.format(count=num_texts)
    return (*asked, ("assistant", answer.strip() or "…"), ("user", said))


def judge(measure: str, label: str, texts: Sequence[str]) -> Messages:
    """The request to judge several texts at once."""
    example = "[" + ", ".join("10"[index % 2] for index in range(len(texts))) + "]"
    head = f"Description: {_quoted(label)}\n\n{len(texts)} texts follow, each as a JSON string. {QUESTIONS[measure]}"
    lines = [f"{number}: {_quoted(text)}" for number, text in enumerate(texts, 1)]
    return (("user", "\n".join([head, "", *lines, "", _LIST.format(count=len(texts), example=example)])),)


def judge_one(measure: str, label: str, text: str) -> Messages:
    """The request to judge one text by Yes or No."""
    question = f"{QUESTIONS[measure]} {_YES_NO}"
    return (("user", f"Description: {_quoted(label)}\n\nText, as a JSON string: {_quoted(text)}\n\n{question}"),)


def read_label(answer: str, *, is_strict: bool) -> str | None:
    """The label in an answer; None if it has none.

    It stands behind the last LABEL:. Where that is missing, the first line of the answer is it, unless `is_strict`.
    """
    lines = [line.strip(" *_#`>") for line in answer.splitlines()]
    tagged = [line[6:] for line in lines if line[:6].upper() == "LABEL:"]
    chosen = tagged[-1:] if tagged or is_strict else [line for line in lines if any(map(str.isalnum, line))][:1]
    if not chosen:
        return None
    text = "".join(each if each.isprintable() else " " for each in chosen[0])
    text = " ".join(text.split()).strip(_AROUND).removesuffix(".").strip(_AROUND)
    if not any(map(str.isalnum, text)) or not has_something_to_see(text):
        return None
    if len(text) > MAX_LABEL:
        return None if is_strict else f"{text[: MAX_LABEL - 1]}…"
    return text


def read_judgements(answer: str, count: int) -> list[bool] | None:
    """The judgements in an answer, from its last list; None if it holds no list of `count` numbers 0 or 1."""
    lists = re.findall(r"\[([01\s,]*)\]", answer)
    values = re.findall(r"[01]", lists[-1]) if lists else []
    if len(values) != count or "".join(lists[-1].split()) != ",".join(values):
        return None
    return [value == "1" for value in values]


def is_refusal(answer: str) -> bool:
    """Whether an answer without a label is a refusal, by how it begins."""
    return bool(_REFUSALS.match(answer))


def _strength(window: Window) -> int:
    return min(10, max(1, round(10 * window.strength)))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
