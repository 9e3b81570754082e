"""The switch between the light theme, the dark one and that of the viewer's system.

Streamlit keeps the choice in the browser, under a key of each page's path. The switch writes it for all pages and loads
the page again, so that every part is drawn in it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from streamlit.components import v2

from crosscope.app.palette import css_variables

_CSS = """
.root { font: 0.8rem/1.3 var(--st-font, system-ui, sans-serif); }
select { font: inherit; width: 100%; min-height: 30px; color: var(--xs-text); background: var(--xs-background);
  border: 1px solid var(--xs-border); border-radius: 6px; padding: 0 0.4rem; }
select:focus-visible { outline: 2px solid var(--xs-primary); outline-offset: 1px; }
label { display: block; color: var(--xs-muted); margin-bottom: 0.2rem; }
"""
_HTML = """<div class="root"><label for="theme">Theme</label><select id="theme">
<option value="System">as the system</option><option value="Light">light</option><option value="Dark">dark</option>
</select></div>"""
_JS = """
export default function ({ data, parentElement }) {
  const folder = window.location.pathname.replace(/[^/]*$/, "");
  const keys = data.paths.map((path) => `stActiveTheme-${folder}${path}-v2`);
  const select = parentElement.querySelector("select");
  const read = () => { try { return JSON.parse(window.localStorage.getItem(keys[0])); } catch { return null; } };
  select.value = read() ?? "System";
  select.onchange = () => {
    for (const key of keys) {
      if (select.value === "System") window.localStorage.removeItem(key);
      else window.localStorage.setItem(key, JSON.stringify(select.value));
    }
    window.location.reload();
  };
}
"""


@cache
def _component() -> Any:
    return v2.component("crosscope_theme", html=_HTML, css=css_variables(".root") + _CSS, js=_JS)


def switch(paths: Sequence[str]) -> None:
    """Draws the switch; `paths` are those of all pages, "" for the first."""
    _component()(key="theme", data={"paths": list(paths)})
