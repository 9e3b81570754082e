"""The form of a recipe: its fields by section, each beside what is wrong with it.

The YAML text is the truth: a form draws what the text says, and a change writes into the text. What fields there are
comes from the schema (`recipe_schema`), what is wrong from the server.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import streamlit as st

from crosscope.app import recipe_text
from crosscope.app.recipe_schema import MAIN, Field, Path, Section, dotted, kinds, sections, strangers
from crosscope.app.recipe_text import MISSING

SECTION = "recipe-section"
"""Key of the section that is shown."""
_PREFIX = "recipe-field-"
Write = Callable[[str], None]


def draw(schema: Mapping[str, Any], text: str, write: Write, wrong: Sequence[tuple[str, str]]) -> None:
    """Draws the form of a recipe's YAML; `write` takes the changed text, `wrong` are fields with sentences."""
    document = recipe_text.read(text)
    if document is None:
        st.info("This is not the YAML of a recipe, so there is no form of it. The text beside says where it breaks.")
        return
    _kind(schema, text, document, write)
    found = sections(schema, document)
    if not found:
        return
    _strangers(found, wrong)
    names = [section.name for section in found]
    if st.session_state.get(SECTION) not in names:
        st.session_state[SECTION] = MAIN
    counts = {section.name: sum(_belongs(section, path) for path, _ in wrong) for section in found}
    st.pills(
        "Part of the recipe",
        names,
        key=SECTION,
        required=True,
        wrap=True,
        format_func=lambda name: f"{name} ({counts[name]} wrong)" if counts[name] else name,
    )
    shown = next(each for each in found if each.name == st.session_state[SECTION])

    def write_whole(changed: str) -> None:
        """Another variant has other fields: those that it does not have go."""
        before, after = _tags(schema, text), _tags(schema, changed)
        write(changed if before == after else _without_strangers(schema, changed))

    _section(shown, text, document, write_whole, wrong)


def _kind(schema: Mapping[str, Any], text: str, document: Mapping[str, Any], write: Write) -> None:
    """The choice of what the recipe makes. Another kind keeps the parts that it has too."""
    options = kinds(schema)
    current = document.get("kind")
    key = f"{_PREFIX}kind"
    st.session_state[key] = current if current in options else None

    def change() -> None:
        write(_without_strangers(schema, recipe_text.put(text, ("kind",), st.session_state[key])))

    st.selectbox("Kind", options, key=key, on_change=change, help="What the job makes.", placeholder="choose one")


def _without_strangers(schema: Mapping[str, Any], text: str) -> str:
    """The text without the keys that its kind and its variant do not have."""
    for path in strangers(schema, recipe_text.read(text) or {}):
        text = recipe_text.drop(text, path)
    return text


def _tags(schema: Mapping[str, Any], text: str) -> list[object]:
    """The values of the fields that say which other fields there are."""
    document = recipe_text.read(text) or {}
    fields = [field for section in sections(schema, document) for group in section.groups for field in group.fields]
    return [recipe_text.value_at(document, field.path) for field in fields if field.is_tag]


def _section(section: Section, text: str, document: Mapping[str, Any], write: Write, wrong: Any) -> None:
    for group in section.groups:
        if group.title:
            st.markdown(f"**{group.title}** — {group.help}" if group.help else f"**{group.title}**")
        _sentences(group.path, wrong)
        with st.container(key=f"wrap-controls-form-{group.title}"):
            for row in range(0, len(group.fields), 2):
                for column, field in zip(st.columns(2), group.fields[row : row + 2], strict=False):
                    with column:
                        _field(field, text, recipe_text.value_at(document, field.path), write)
                        _sentences(field.path, wrong)
        if section.is_list:
            st.button(
                f"Remove {group.title}",
                key=f"{_PREFIX}remove-{group.title}",
                on_click=lambda path=group.path: write(recipe_text.drop(text, path)),
            )
    if section.is_list:
        path = (section.name, len(section.groups)) if section.groups else (section.name,)
        added: object = {"name": f"{section.name}-{len(section.groups) + 1}"}
        added = added if section.groups else [added]
        st.button(
            f"Add one to {section.name}",
            key=f"{_PREFIX}add-{section.name}",
            on_click=lambda: write(recipe_text.put(text, path, added)),
        )


def _field(field: Field, text: str, value: object, write: Write) -> None:
    key = f"{_PREFIX}{field.dotted}"
    label = f"{field.path[-1]}{'' if field.is_required else ' (optional)'}"
    hint = "; ".join(filter(None, (field.help.rstrip("."), field.limits)))

    def change() -> None:
        given = st.session_state[key]
        if given is None or given == "":
            write(recipe_text.drop(text, field.path))
        else:
            write(recipe_text.put(text, field.path, recipe_text.typed(given) if field.kind == "value" else given))

    default = "" if field.default is None else recipe_text.shown(field.default)
    if field.kind == "flag":
        st.session_state[key] = bool(field.default) if value is MISSING else bool(value)
        st.checkbox(label, key=key, help=hint, on_change=change)
    elif field.kind == "choice":
        current = field.default if value is MISSING else value
        options = list(dict.fromkeys([*field.choices, *([str(current)] if current is not None else [])]))
        st.session_state[key] = None if current is None else str(current)
        st.selectbox(label, options, key=key, help=hint, on_change=change)
    else:
        st.session_state[key] = recipe_text.shown(value)
        st.text_input(label, key=key, help=hint, placeholder=default, on_change=change)


def _sentences(path: Path, wrong: Sequence[tuple[str, str]]) -> None:
    """What is wrong with exactly this field or part."""
    for where, sentence in wrong:
        if path and where == dotted(path):
            st.html(f'<p class="xs-wrong"><b>{escape(where)}</b>: {escape(sentence)}</p>')


def _belongs(section: Section, where: str) -> bool:
    if section.name == MAIN:
        return any(field.dotted == where for group in section.groups for field in group.fields)
    return where == section.name or where.startswith(f"{section.name}.")


def _strangers(found: Sequence[Section], wrong: Sequence[tuple[str, str]]) -> None:
    """What is wrong and has no field in the form: unknown keys, and what is about the whole recipe."""
    known = {field.dotted for section in found for group in section.groups for field in group.fields}
    known |= {group.title for section in found for group in section.groups} | {section.name for section in found}
    for where, sentence in wrong:
        if where not in known:
            st.html(f'<p class="xs-wrong"><b>{escape(where or "the whole recipe")}</b>: {escape(sentence)}</p>')
