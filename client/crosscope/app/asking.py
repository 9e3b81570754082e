"""Questions about prompts, and questions that are asked before their answer is needed, so that calls run side by side.

Answers are cached by the viewer's token, the version and the prompt. Does not know widgets and URLs.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import streamlit as st

from crosscope import BothAttributions, Comparison, CrosscopeError, Encoding, Latent, TokenCount, TopLatents
from crosscope.app import login, session

NEXT_TOKENS = 8
"""Next tokens of each model that a page shows."""
COMPARED = json.dumps({"top_n": NEXT_TOKENS})
"""Further arguments of `Crosscoder.compare`."""


def ahead(
    name: str, version_id: str, latents: Sequence[int], asked: Sequence[tuple[Any, ...]]
) -> list[Future[Latent | None]]:
    """Reads latents and their examples in the background, so that a step to one of them finds all of it there.

    `asked` are the arguments of `examples` behind the latent. A call that fails is made again when it is needed.
    """
    pool, token = _threads(), login.token()
    return [pool.submit(login.run_as, token, _read, name, version_id, each, tuple(asked)) for each in latents]


def _read(name: str, version_id: str, latent_id: int, asked: Sequence[tuple[Any, ...]]) -> Latent | None:
    with suppress(CrosscopeError):
        for arguments in asked:
            session.examples(name, version_id, latent_id, *arguments)
        return session.latent(name, version_id, latent_id)


@st.cache_resource(show_spinner=False)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, "asking")


def count_tokens(name: str, version_id: str, prompt_json: str) -> TokenCount:
    """How many tokens a prompt has; `prompt_json` as in `encode`."""
    return _count_tokens(login.token(), name, version_id, prompt_json)


@st.cache_resource(max_entries=256, show_spinner=False)
def _count_tokens(token: str | None, name: str, version_id: str, prompt_json: str) -> TokenCount:
    arguments = json.loads(prompt_json)
    prompt = arguments.pop("messages", None) or arguments.pop("text")
    return session.crosscoder_as(token, name, version_id).count_tokens(prompt, **arguments)


@st.cache_resource(max_entries=128, show_spinner=False)
def _asking(token: str | None, call: str, name: str, version_id: str, prompt_json: str, more_json: str) -> Future[Any]:
    more = json.loads(more_json)
    if "tokens" in more:
        more["tokens"] = slice(*more["tokens"])
    ask = getattr(session.crosscoder_as(token, name, version_id), call)
    return _threads().submit(ask, **json.loads(prompt_json), **more)


def ask_ahead(call: str, name: str, version_id: str, prompt_json: str, more_json: str = "{}") -> None:
    """Begins to ask what the page needs later: "encode", "compare" or "top_latents", so that calls run side by side.

    What has failed before is asked anew.
    """
    question = (login.token(), call, name, version_id, prompt_json, more_json)
    asked = _asking(*question)
    if asked.done() and asked.exception():
        _asking.clear(*question)
        _asking(*question)


def _answer(call: str, name: str, version_id: str, prompt_json: str, more_json: str, spinner: str) -> Any:
    """The answer of a call that may be on its way already. A failed one is asked again the next time."""
    asked = _asking(login.token(), call, name, version_id, prompt_json, more_json)
    try:
        if asked.done():
            return asked.result()
        with st.spinner(spinner):
            return asked.result()
    except CrosscopeError:
        _asking.clear(login.token(), call, name, version_id, prompt_json, more_json)
        raise


def encode(name: str, version_id: str, prompt_json: str) -> Encoding:
    """The sparse code of a prompt; `prompt_json` holds the arguments of `Crosscoder.encode`."""
    return _answer("encode", name, version_id, prompt_json, "{}", "Running both models …")


def top_latents(name: str, version_id: str, prompt_json: str, ranking_json: str) -> TopLatents:
    """The latents of a prompt, ranked; `ranking_json` holds the other arguments of `Crosscoder.top_latents`."""
    return _answer("top_latents", name, version_id, prompt_json, ranking_json, "Ranking …")


def compare(name: str, version_id: str, prompt_json: str, more_json: str = COMPARED) -> Comparison:
    """Both models' predictions on a prompt; `prompt_json` as in `encode`, `more_json` as in COMPARED."""
    return _answer("compare", name, version_id, prompt_json, more_json, "Running both models whole …")


def attribute_both(name: str, version_id: str, prompt_json: str, at: int) -> BothAttributions:
    """What latents do to the difference at one token of a prompt, in both models; `prompt_json` as in `encode`."""
    return _attribute_both(login.token(), name, version_id, prompt_json, at)


@st.cache_resource(max_entries=32, show_spinner="Changing latents in both models, one by one …")
def _attribute_both(token: str | None, name: str, version_id: str, prompt_json: str, at: int) -> BothAttributions:
    return session.crosscoder_as(token, name, version_id).attribute_both(**json.loads(prompt_json), tokens=[at])
