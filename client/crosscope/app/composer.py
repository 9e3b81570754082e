"""The composer: fields for a conversation's turns or a raw text. The pages that run a prompt share it.

The prompt stands in the URL, under the same names on each of these pages.
"""

import hashlib
from dataclasses import replace

import streamlit as st

from crosscope import InvalidInput, turns_from_text
from crosscope.app import panels, prompts, text, url
from crosscope.app.prompts import ROLES, LabPrompt, Turn

PASTED, RECOGNISED = "lab-pasted", "lab-recognised"
"""Keys of the session state with what was pasted, and with what was made of it."""
LONG_PROMPT = "lab-long-prompt"
"""Key of the session state with a prompt that is too long for a URL."""


def current() -> LabPrompt:
    """The prompt of the URL, else the one that was too long for it, else an empty one."""
    prompt = prompts.of_params({name: st.query_params[name] for name in st.query_params})
    if prompt.is_empty and not prompt.turns and LONG_PROMPT in st.session_state:
        return st.session_state[LONG_PROMPT]
    return prompt


def store(prompt: LabPrompt) -> None:
    """Makes a prompt the current one and unlocks the token that was locked in the old one."""
    fits = prompt.fits_url()
    params = {name: value if fits else None for name, value in prompt.params().items()}
    url.write({"token": None, "range": None, **params})
    if fits:
        st.session_state.pop(LONG_PROMPT, None)
    else:
        st.session_state[LONG_PROMPT] = prompt


def link_params(prompt: LabPrompt) -> dict[str, str | None]:
    """Parameters by which a link takes the prompt to another page; a prompt that is too long travels in the session."""
    return prompt.params() if prompt.fits_url() else {}


def fields(prompt: LabPrompt, *, answered: bool = False) -> LabPrompt:
    """Draws fields for turns or raw text. The URL has the prompt, so a field's key changes with its content.

    With `answered`, a model answers the prompt: it always ends with the assistant's header, and no switch says so.
    """
    with st.container(key="composer"):
        return _fields(prompt, answered)


def _fields(prompt: LabPrompt, answered: bool) -> LabPrompt:
    kinds = ("conversation", "raw text")
    kind = st.segmented_control(
        "Prompt",
        kinds,
        default=kinds[1] if prompt.text else kinds[0],
        required=True,
        label_visibility="collapsed",
        key=f"kind-{bool(prompt.text)}",
    )
    if kind == "raw text":
        raw_text(prompt)
        return LabPrompt(text=prompt.text)
    turns = prompt.turns or (Turn("user", ""),)
    for index, turn in enumerate(turns):
        turn_fields(replace(prompt, text="", turns=turns), index, turn)
    row = st.container(horizontal=True, vertical_alignment="center")
    role = "assistant" if turns[-1].role == "user" else "user"
    row.button("Add turn", on_click=lambda: store(replace(prompt, text="", turns=(*turns, Turn(role, "")))))
    if not answered and not prompt.goes_on:
        row.toggle(
            "End with the assistant's header",
            prompt.add_generation_prompt,
            key=f"answer-{prompt.add_generation_prompt}",
            help="The last token is then the one that decides how the answer begins.",
            on_change=lambda: store(
                replace(prompt, text="", turns=turns, add_generation_prompt=not prompt.add_generation_prompt)
            ),
        )
    if turns[-1].role == "assistant":
        row.toggle(
            "The last turn is only begun",
            prompt.is_begun,
            key=f"begun-{prompt.is_begun}",
            help="Nothing is printed behind it: a model goes on with it.",
            on_change=lambda: store(replace(prompt, text="", turns=turns, is_begun=not prompt.is_begun)),
        )
    template_options(replace(prompt, text="", turns=turns))
    silent = [str(place + 1) for place in range(len(turns)) if place not in prompt.spoken]
    if prompt.spoken and silent:
        row.caption(f"Still empty and not run: turn {', '.join(silent)}.")
    if not prompt.fits_url():
        row.caption("Too long for the link: the link restores the page without it.")
    return replace(prompt, text="", turns=prompt.turns)


def paste() -> None:
    """A field for a copied conversation, which becomes the turns of the prompt."""
    if box := panels.folded("Paste a conversation", "paste"):
        box.text_area(
            "A conversation as text",
            key=PASTED,
            height=120,
            help="Llama 3 headers, ChatML, Gemma's turns, JSON messages, or lines like User: and Assistant:.",
        )
        box.button("Make turns of it", on_click=take_pasted)
        if said := st.session_state.get(RECOGNISED):
            box.caption(text.plain(said))


def take_pasted() -> None:
    """Makes the pasted conversation the prompt, and keeps what was recognised and left out."""
    try:
        found = turns_from_text(st.session_state[PASTED])
    except InvalidInput as error:
        st.session_state[RECOGNISED] = str(error)
        return
    unread = sorted({key for turn in found.messages for key in turn if key not in ("role", "content", "prefix")})
    more = f" This page has no field for {', '.join(unread)}." if unread else ""
    st.session_state[RECOGNISED] = f"{found}{more}"
    st.session_state[PASTED] = ""
    store(prompts.of_transcript(found))


def template_options(prompt: LabPrompt) -> None:
    """Draws a field for arguments of the chat template."""
    key = f"options-{digest(prompt.template_options)}"
    if box := panels.folded("Template options", "template-options", opened=bool(prompt.template_options)):
        box.text_input(
            "Arguments of the chat template, as JSON",
            prompt.template_options,
            key=key,
            placeholder='{"enable_thinking": false}',
            on_change=lambda: store(replace(prompt, template_options=st.session_state[key].strip())),
        )


def raw_text(prompt: LabPrompt) -> None:
    """The field of a raw text."""
    key = f"text-{digest(prompt.text)}"
    st.text_area(
        "Text",
        prompt.text,
        key=key,
        height=120,
        help="A BOS token is put in front. Control tokens are read as text.",
        on_change=lambda: store(LabPrompt(text=st.session_state[key])),
    )


def turn_fields(prompt: LabPrompt, index: int, turn: Turn) -> None:
    """Role, content and removal of one turn."""
    key = f"turn-{index}-{digest(turn.role + turn.content)}"
    row = st.container(horizontal=True, vertical_alignment="top", gap="small", key=f"turn-row-{index}")
    role = row.selectbox(
        f"Role of turn {index + 1}",
        ROLES,
        ROLES.index(turn.role),
        key=f"{key}-role",
        format_func=lambda name: f"{index + 1} · {name}",
        width=140,
        label_visibility="collapsed",
        on_change=lambda: store(prompt.with_turn(index, replace(turn, role=st.session_state[f"{key}-role"]))),
    )
    row.text_area(
        f"Turn {index + 1}, {role}",
        turn.content,
        key=f"{key}-text",
        height=70,
        label_visibility="collapsed",
        placeholder=f"What the {role} says",
        on_change=lambda: store(prompt.with_turn(index, replace(turn, content=st.session_state[f"{key}-text"]))),
    )
    if len(prompt.turns) > 1:
        row.button("Remove", key=f"{key}-remove", on_click=lambda: store(prompt.with_turn(index, None)))


def digest(text: str) -> str:
    """A short name of a text, for keys of fields."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
