"""The recipe that a person starts from: one that ran on this server, under another name, else a form to fill in.

Knows nothing about Streamlit.
"""

import re
from collections.abc import Mapping

import yaml

NAME = "my-crosscoder"
FORM = f"""\
# Nothing is published here yet. Replace each <…> by your own value; Check says what is still missing.
kind: crosscoder
name: {NAME}
pair:
  name: <a short name of the pair>
  base: <hub id, or folder on the server, of the base model>
  chat: <the same of its chat-tuned sibling>
layer: <number of the decoder layer whose output is read, for instance the middle one>
data:
  - name: documents
    source: jsonl
    path: <file on the server, a JSON object a line>
    text_column: text
  - name: chats
    source: jsonl
    path: <file on the server, a JSON object a line>
    chat_column: conversation
crosscoder:
  variant: batch_topk
  num_latents: 16384
  k: 32
"""


def of_published(recipe_yaml: str, manifest: Mapping[str, object]) -> str:
    """The recipe of a published crosscoder, as submitted or else from the manifest, under the name `NAME`."""
    if recipe_yaml and re.search(r"^name:", recipe_yaml, re.MULTILINE):
        return re.sub(r"^name:.*$", f"name: {NAME}", recipe_yaml, count=1, flags=re.MULTILINE)
    recipe = manifest.get("recipe")
    if not isinstance(recipe, Mapping) or not recipe:
        return FORM
    return yaml.safe_dump(_said({**recipe, "name": NAME}), sort_keys=False, allow_unicode=True)


def _said(value: object) -> object:
    """The value without unset fields, which a recipe leaves out."""
    if isinstance(value, Mapping):
        return {name: _said(part) for name, part in value.items() if part is not None and part not in ([], {}, "")}
    if isinstance(value, list | tuple):
        return [_said(part) for part in value]
    return value
