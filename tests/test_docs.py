"""The pages of docs/: generated tables hold everything, and what pages name exists."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from google.protobuf.descriptor import Descriptor
from mkdocs.exceptions import PluginError
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from crosscope_proto.recipe import recipe_schema
from crosscope_proto.v1 import jobs_pb2, latents_pb2, looks_pb2, prompts_pb2, types_pb2
from crosscope_server.errors import CallError
from scripts.docs import api, hook, recipes, scaling

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STRICT = ConfigDict(extra="forbid", frozen=True)
FILES = (jobs_pb2, latents_pb2, looks_pb2, prompts_pb2, types_pb2)


def test_the_tables_about_scaling_are_those_of_today() -> None:
    page = scaling.PAGE.read_text("utf-8")
    assert scaling.filled(page) == page, "run: python -m scripts.docs.scaling"
    assert set(re.findall(r"<!-- table: (\w+) -->", page)) == scaling.TABLES.keys()


def tables(markdown: str) -> dict[str, dict[str, list[str]]]:
    """Anchor of a section to its table: the first cell of each row to the others."""
    found: dict[str, dict[str, list[str]]] = {}
    for section in re.split(r"^#+ ", markdown, flags=re.MULTILINE):
        if anchor := re.search(r"\{ #([\w.]+) \}", section):
            rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in section.splitlines() if line[:3] == "| `"]
            found[anchor[1]] = {row[0].strip("`"): row[1:] for row in rows}
    return found


@pytest.fixture(scope="module")
def api_page() -> str:
    return api.reference()


def test_every_field_of_a_recipe_stands_there_with_its_default_and_its_meaning() -> None:
    found = tables(recipes.reference())
    parts: dict[str, Any] = recipe_schema()["$defs"]  # pyright: ignore[reportAssignmentType]
    schemas = {name: schema for name, schema in parts.items() if "properties" in schema}
    assert found.keys() == schemas.keys()
    for name, schema in schemas.items():
        assert found[name].keys() == schema["properties"].keys(), name
        for field, (_, default, meaning) in found[name].items():
            expected = schema["properties"][field].get("default", "must be given")
            if isinstance(expected, dict) and expected:
                assert default.startswith("[its defaults](#"), (name, field)
            elif field not in schema.get("required", ()) and "default" in schema["properties"][field]:
                shown = {"None": "null", "True": "true", "False": "false"}.get(str(expected), str(expected))
                assert default == f"`{shown}`", (name, field)
            assert meaning, (name, field)


@dataclass(config=STRICT)
class Common:
    num_latents: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """Number of latents."""


@dataclass(config=STRICT)
class Plain(Common):
    """One budget."""

    variant: Literal["plain"]
    k: Annotated[int, Field(ge=1, le=10**12)] = 50
    """Latents a token,
    on average."""


@dataclass(config=STRICT)
class Penalised(Common):
    """A penalty."""

    variant: Literal["penalised"]
    mu: float | None = None
    """Its weight."""


@dataclass(config=STRICT)
class Kind:
    """A kind."""

    kind: Literal["kind"]
    crosscoder: Annotated[Plain | Penalised, Field(discriminator="variant")]


def test_each_member_of_a_union_has_a_table() -> None:
    page = recipes.reference([Kind])
    found = tables(page)
    assert found["Kind"]["crosscoder"][0] == "mapping, by `variant`: [plain](#Plain), [penalised](#Penalised)"
    assert found["Kind"]["crosscoder"][2] == "One of these tables; `variant` chooses."
    assert found["Plain"] == {
        "num_latents": ["whole number, ≥\u00a01, ≤\u00a02^31 - 1", "must be given", "Number of latents."],
        "variant": ["`plain`", "must be given", "The word that chooses this table."],
        "k": ["whole number, ≥\u00a01, ≤\u00a010^12", "`50`", "Latents a token, on average."],
    }
    assert found["Penalised"]["mu"] == ["number or `null`", "`null`", "Its weight."]
    assert "## `crosscoder` with `variant: penalised` { #Penalised }" in page


def messages(types: "Mapping[str, Descriptor]") -> Iterator[Descriptor]:
    for message in types.values():
        if not message.GetOptions().map_entry:
            yield message
            yield from messages(message.nested_types_by_name)


def test_every_call_message_and_field_of_the_api_stands_there(api_page: str) -> None:
    found = tables(api_page)
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            assert found[service.name].keys() == {f"{service.name}.{call.name}" for call in service.methods}
            assert all(row[-1].strip() for row in found[service.name].values()), service.name
        for message in messages(file.DESCRIPTOR.message_types_by_name):
            name = message.full_name.removeprefix("crosscope.v1.")
            assert found[name].keys() == set(message.fields_by_name), name
            assert all(row[-1].strip() for row in found[name].values()), name


def test_limits_streams_and_statuses_of_the_api(api_page: str) -> None:
    found = tables(api_page)
    assert found["EncodeRequest"]["top_k"][:2] == ["uint32, optional", "≥ 1; ≤ 65536"]
    assert found["SubmitJobRequest"]["after"][:2] == [
        "list of string",
        "at most 16 items; each at least 1 character; each at most 64 characters",
    ]
    assert found["Jobs"]["Jobs.WatchJob"][1] == "a stream of [WatchJobResponse](#WatchJobResponse)"
    assert found["Crosscoder"]["metrics"][0] == "map of string to double"
    assert "Excludes `error`." in found["EncodeStreamResponse"]["response"][-1]
    assert "Excludes" not in found["EncodeStreamResponse"]["sequence"][-1]
    for error in CallError.__subclasses__():
        assert f"| `{error.status.name}` | `{error.reason}` |" in api_page


def test_links_out_of_the_pages_lead_to_files() -> None:
    assert hook.with_paths("[`recipes/demo.yaml`](../recipes/demo.yaml)") == "`recipes/demo.yaml`"
    with pytest.raises(PluginError, match=r"\.\./recipes/gone\.yaml, which does not exist"):
        hook.with_paths("[it](../recipes/gone.yaml)")
    linked = hook.with_sections("see math §4 and `math §4`\n```\nmath §4\n```\n")
    assert linked == (
        "see [math §4](math.md#4-latent-scaling-every-latent-one-pass) and `math §4`\n```\nmath §4\n```\n"
    )
    with pytest.raises(PluginError, match="no section 'Gone'"):
        hook.readme("Gone")


def test_the_first_page_has_the_readmes_commands_whole() -> None:
    text = hook.readme("Five minutes")
    assert text.count("```") % 2 == 0
    assert "crosscope jobs --limit 5" in text
    assert "](math.md)" in text
    assert "](../recipes/gemma-2-2b-published.yaml)" in text
    assert hook.readme("introduction").startswith("**What did chat-tuning change")


def names_of(path: Path) -> set[str]:
    """Functions, classes, methods and constants of a module; of another file, its words."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return set(re.findall(r"\w+", text))
    found: set[str] = set()
    for node in ast.parse(text).body:
        match node:
            case ast.ClassDef(name=name, body=body):
                inner = (each for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
                found |= {name, *(f"{name}.{each.name}" for each in inner)}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case _:
                pass
    return found


def test_what_pages_name_exists() -> None:
    tops = "|".join(("bench", "client", "deploy", "docs", "proto", "recipes", "scripts", "server", "tests", "worker"))
    tests = {
        name for path in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    wrong: list[str] = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for path, name in re.findall(rf"[`\"]((?:{tops})/[\w./-]*)(?:::([\w.]+))?[`\"]", text):
            if not (ROOT / path).exists() or (name and name not in names_of(ROOT / path)):
                wrong.append(f"{page.name}: {path} {name}")
        wrong += [f"{page.name}: {name}" for name in re.findall(r"`(test_\w+)`", text) if name not in tests]
    assert wrong == []


def test_code_that_a_page_quotes_is_the_code() -> None:
    quoted = 0
    for page in PAGES:
        text = page.read_text("utf-8")
        for path, block in re.findall(r"^```python title=\"(.+?)\"\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            source = (ROOT / path).read_text("utf-8").splitlines()
            assert [line for line in block.splitlines() if line not in source] == [], f"{page.name}: {path}"
            quoted += 1
    assert quoted >= 2


def test_many_questions_are_answered_by_a_place() -> None:
    page = (ROOT / "docs" / "where.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| (Where|What|Which) .*\? \|", line)]
    assert len(rows) >= 20
    assert all(re.search(r"`[\w/]+\.\w+(::[\w.]+)?`", row) for row in rows)


def test_every_path_in_the_readmes_tree_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (tree,) = re.findall(r"^```\n(README\.md\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    folders: dict[int, Path] = {0: ROOT}
    paths: list[Path] = []
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        names = re.split(r" {2,}", line.strip())[0].split(", ")
        folder = folders[depth]
        paths += [folder / name for name in names]
        folders[depth + 2] = folder / names[0]
    assert len(paths) > 40
    missing = [path for path in paths if not list(path.parent.glob(path.name))]
    assert missing == []
