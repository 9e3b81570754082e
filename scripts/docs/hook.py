"""The hooks that mkdocs calls while it builds the site.

They put reference tables in place of `<!-- generated -->` and parts of the README in place of `<!-- readme: TITLE -->`,
and link sections of math.md by their numbers. Links to files of the repository, which are not pages, become the paths
of these files. A link to a missing file ends the build.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.exceptions import PluginError

from crosscope_proto.column import markdown
from crosscope_proto.columns import ALL_LATENT_COLUMNS
from scripts.docs import api, recipes

ROOT = Path(__file__).resolve().parents[2]
MARKER = "<!-- generated -->"
REFERENCES: Mapping[str, Callable[[], str]] = {
    "recipes.md": recipes.reference,
    "api.md": api.reference,
    "columns.md": lambda: markdown(ALL_LATENT_COLUMNS),
}
"""The function that makes the tables of each page."""
_README = re.compile(r"<!-- readme: (.+) -->")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)\)")
_PAGE = re.compile(r"\((?:see )?docs/([\w-]+\.md)\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"\[math §(\d+)\]\(math\.md\)|(?<!\[)\bmath §(\d+)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """The page's Markdown with tables and links in place."""
    name = page.file.src_uri
    if name in REFERENCES:
        if markdown.count(MARKER) != 1:
            raise PluginError(f"docs/{name} must have {MARKER} once, where its tables go")
        markdown = markdown.replace(MARKER, _PAGE.sub(r"([\1](\1))", REFERENCES[name]()))
    markdown = _README.sub(lambda found: readme(found[1]), markdown)
    return with_paths(with_sections(markdown))


def readme(title: str) -> str:
    """The text below a title of the README, with links as in a page of docs/; "introduction" is the text before all."""
    introduction, *sections = re.split(r"^## ", (ROOT / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    parts = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
    parts["introduction"] = introduction.partition("\n")[2]
    if title not in parts:
        raise PluginError(f"the README has no section {title!r}; it has {', '.join(parts)}")
    inside = re.sub(r"\]\((?!docs/|https?:|#)", "](../", parts[title])
    return inside.replace("](docs/", "](").strip()


def with_sections(markdown: str) -> str:
    """The text with every "math §4", a link or not, linked to that section; code stays unchanged."""
    page = (ROOT / "docs" / "math.md").read_text("utf-8")
    slugs = {title[0]: slugify(f"§{title[0]}{title[1]}", "-") for title in re.findall(r"^## §(\d+)(.*)$", page, re.M)}
    parts = _CODE.split(markdown)
    parts[::2] = [
        _SECTION.sub(lambda m: f"[math §{m[1] or m[2]}](math.md#{slugs[m[1] or m[2]]})", p) for p in parts[::2]
    ]
    return "".join(parts)


def with_paths(markdown: str) -> str:
    """The text with links to files of the repository replaced by their paths. Raises PluginError for a missing file."""
    return _OUTSIDE.sub(_path, markdown)


def _path(link: re.Match[str]) -> str:
    text, target = link[1], link[2]
    if not (ROOT / target).exists():
        raise PluginError(f"a page links to ../{target}, which does not exist")
    return text if target.rstrip("/").endswith(text.strip("`").rstrip("/")) else f"{text} (`{target}`)"
