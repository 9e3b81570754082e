"""The tokens of a prompt, counted while it is typed. No model runs, and the page is not drawn again.

A component watches the composer's fields. When nobody has typed for a moment, it sends their texts to a fragment, which
asks the tokenizer alone.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import streamlit as st
from streamlit.components import v2

from crosscope import CrosscoderInfo, CrosscopeError, Unauthorized
from crosscope.app import (
    asking,
    text,
)
from crosscope.app.palette import css_variables
from crosscope.app.prompts import LabPrompt

KEY, TYPED = "token-count", "token-count-typed"
"""Keys of the component, and of the session state with the prompt and the texts that are being typed in its place."""
_SCRIPT = """
const PAUSE_MS = 300, LEFT_MS = 2000;
const watches = new WeakMap();
const typed = (target) => target.matches?.("textarea") && target.closest(".st-key-composer");
export default function ({ data, parentElement, setTriggerValue }) {
  const out = parentElement.querySelector(".count");
  if (out.textContent !== data.said) out.textContent = data.said;
  out.classList.toggle("over", data.over);
  const watch = watches.get(out) ?? {};
  watch.send = setTriggerValue;
  if (watches.has(out)) return;
  watches.set(out, watch);
  const later = (field, pause) => {
    clearTimeout(watch.timer);
    watch.timer = setTimeout(() => {
      watch.timer = undefined;
      const fields = field.closest(".st-key-composer")?.querySelectorAll("textarea") ?? [];
      if (field.isConnected) watch.send("typed", [...fields].map((each) => each.value));
    }, pause);
  };
  document.addEventListener("input", ({ target }) => {
    if (out.isConnected && typed(target)) later(target, PAUSE_MS);
  }, true);
  // A field that is left, or sent, becomes the prompt: the page puts a new one in its place, which counts its tokens.
  const sent = ({ target }) => {
    if (watch.timer && typed(target)) later(target, LEFT_MS);
  };
  document.addEventListener("focusout", sent, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) sent(event);
  }, true);
}
"""

_STYLE = """
.count { color: var(--xs-muted); font: 0.8rem var(--st-font, system-ui); font-variant-numeric: tabular-nums; }
.count.over { color: var(--xs-text); font-weight: 650; }
"""


@cache
def _component() -> Any:
    html = '<div class="count" role="status"></div>'
    return v2.component("crosscope_token_count", html=html, css=css_variables(".count") + _STYLE, js=_SCRIPT)


@st.fragment
def counter(prompt: LabPrompt, info: CrosscoderInfo) -> None:
    """Draws the number of tokens, of what is in the fields now."""
    params = prompt.params()
    before, texts = st.session_state.get(TYPED, (None, []))
    shown = typed(prompt, texts) if before == params else prompt
    said, over = count(shown, info)
    _component()(key=KEY, data={"said": said, "over": over}, on_typed_change=lambda: _keep(params))


def _keep(params: dict[str, str | None]) -> None:
    if (texts := st.session_state[KEY].typed) is not None:
        st.session_state[TYPED] = (params, texts)


def typed(prompt: LabPrompt, texts: list[str]) -> LabPrompt:
    """The prompt with the texts that stand in its fields."""
    if not prompt.turns:
        return replace(prompt, text=texts[0] if texts else "")
    pairs = zip(prompt.turns, texts, strict=False)
    return replace(prompt, turns=tuple(replace(turn, content=said) for turn, said in pairs))


def count(prompt: LabPrompt, info: CrosscoderInfo) -> tuple[str, bool]:
    """What is said about the tokens of a prompt, and whether they are too many."""
    if prompt.is_empty:
        return "", False
    try:
        found = asking.count_tokens(info.name, info.version_id, json.dumps(prompt.arguments()))
    except Unauthorized:
        return "", False  # the page says so where it would show the latents
    except CrosscopeError as error:
        return str(error), False
    of = "" if found.limit is None else f" of {text.count(found.limit)}"
    over = "" if found.fits else ", too many to run"
    said = f"{text.count(found.num_tokens)}{of} tokens, {text.count(found.num_template)} of the template{over}"
    return said, not found.fits
