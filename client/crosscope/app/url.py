"""Widgets whose value stands in the URL under the names of the code, and the only code that writes the URL.

The URL is the truth: each run puts its value into the widget, and a change writes the URL before the next run. No
widget is bound to a parameter by Streamlit, so any other code may write that parameter too. One step of a person is
one write, and so one entry of the browser's history.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

Option = TypeVar("Option")
Value = str | Sequence[str] | None
PAGE = "page"
"""The parameter of the rows that a table shows, 1 for the first. Every other change begins again at the first."""
FILLED_IN = "url-filled-in"
"""Key of the session state with the parameters that a page fills in where its URL lacks them."""


def params() -> dict[str, list[str]]:
    """The URL's parameters; a repeated parameter has several values."""
    return {name: st.query_params.get_all(name) for name in st.query_params}


def canonical() -> dict[str, list[str]]:
    """The URL's parameters with those that the page filled in."""
    return {**st.session_state.get(FILLED_IN, {}), **params()}


def write(changes: Mapping[str, Value]) -> None:
    """Changes parameters of the URL at once; None or nothing takes one out. Does nothing where nothing changes."""
    before = canonical()
    after = {**before, **{name: _texts(value) for name, value in changes.items()}}
    if PAGE not in changes:
        after.pop(PAGE, None)
    after = {name: values for name, values in after.items() if values}
    if after != before:
        st.query_params.from_dict(after)


def keep(name: str, value: Value) -> None:
    """Writes one parameter."""
    write({name: value})


def page() -> int:
    """The number of the page of rows, 0 for the first."""
    found = st.query_params.get(PAGE, "")
    return max(0, int(found) - 1) if found.isdecimal() and len(found) < 10 else 0


def fill_in(**values: str) -> None:
    """Notes parameters that the page shows and its URL lacks; `address.settle` writes them into the address."""
    st.session_state.setdefault(FILLED_IN, {}).update({name: [value] for name, value in values.items()})


def _texts(value: Value) -> list[str]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else list(value)


def choice(
    container: DeltaGenerator,
    label: str,
    options: Sequence[Option],
    default: Option,
    param: str,
    name: Callable[[Option], str] = str,
    **layout: Any,
) -> Option:
    """One of several options, in a list to open; `name` is what people read."""
    current = option_of(options, default, param)
    key = _key(param, current)
    container.selectbox(label, options, key=key, format_func=name, on_change=_write, args=(param, default), **layout)
    return current


def segments(
    container: DeltaGenerator,
    label: str,
    options: Sequence[Option],
    default: Option,
    param: str,
    name: Callable[[Option], str] = str,
) -> Option:
    """One of a few options side by side; `name` is what people read."""
    current = option_of(options, default, param)
    key = _key(param, current)
    container.segmented_control(
        label, options, required=True, key=key, format_func=name, on_change=_write, args=(param, default)
    )
    return current


def several(label: str, options: Sequence[str], param: str, name: Callable[[str], str], **layout: Any) -> list[str]:
    """Any number of options; the URL repeats the parameter."""
    given = st.query_params.get_all(param)
    current = [option for option in options if option in given]
    key = _key(param, current)
    st.pills(
        label, options, selection_mode="multi", key=key, format_func=name, on_change=_write, args=(param, []), **layout
    )
    return current


def slider(
    container: DeltaGenerator,
    label: str,
    ends: tuple[float, float],
    step: float,
    current: float | tuple[float, float],
    param: str,
    **layout: Any,
) -> None:
    """A limit, or a range: two values of the parameter. `current` is what the URL says; the ends filter nothing."""
    low, high = ends
    if isinstance(current, tuple):
        shown: Any = tuple(min(max(value, low), high) for value in current)
        default: Any = ends
    else:
        shown, default = min(max(current, low), high), high
    key = _key(param, shown)
    container.slider(label, low, high, step=step, key=key, on_change=_write, args=(param, default), **layout)


def whole_number(
    container: DeltaGenerator, label: str, ends: tuple[int, int], default: int, param: str, width: int
) -> int:
    """A whole number within `ends`."""
    current = whole_of(ends, default, param)
    key = _key(param, current)
    container.number_input(label, *ends, key=key, width=width, on_change=_write, args=(param, default))
    return current


def number(
    container: DeltaGenerator,
    label: str,
    ends: tuple[float, float],
    step: float,
    default: float,
    param: str,
    **layout: Any,
) -> float:
    """A number within `ends`."""
    try:
        found = float(st.query_params.get(param, default))
    except ValueError:
        found = default
    current = min(max(found if math.isfinite(found) else default, ends[0]), ends[1])
    key = _key(param, current)
    container.number_input(
        label, *ends, step=step, format="%.2f", key=key, on_change=_write, args=(param, default), **layout
    )
    return current


def text(container: DeltaGenerator, label: str, param: str, **layout: Any) -> str:
    """A text on one line."""
    current = st.query_params.get(param, "")
    key = _key(param, current)
    container.text_input(label, key=key, on_change=_write, args=(param, ""), **layout)
    return current


def toggle(container: DeltaGenerator, label: str, param: str, **layout: Any) -> bool:
    """On or off; the URL says only that it is on."""
    current = is_on(param)
    key = _key(param, current)
    container.toggle(label, key=key, on_change=_write, args=(param, False), **layout)
    return current


def whole_of(ends: tuple[int, int], default: int, param: str) -> int:
    """The whole number that the URL names, within `ends`; else the default."""
    text = st.query_params.get(param, "")
    found = int(text) if text.isdecimal() and len(text) < 10 else default
    return min(max(found, ends[0]), ends[1])


def is_on(param: str) -> bool:
    """Whether the URL says that something is on."""
    return st.query_params.get(param) == "true"


def option_of(options: Sequence[Option], default: Option, param: str) -> Option:
    """The option that the URL names, else the default."""
    found = st.query_params.get(param)
    return next((option for option in options if str(option) == found), default)


def _key(param: str, current: object) -> str:
    """The key of a parameter's widget, whose state is made what the URL says."""
    key = f"url-{param}"
    st.session_state[key] = current
    return key


def _write(param: str, default: object) -> None:
    value = st.session_state[f"url-{param}"]
    if value is None or value == default:
        keep(param, None)
    elif isinstance(value, list | tuple):
        keep(param, [_text(part) for part in value])
    else:
        keep(param, _text(value))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
