"""docs/operations.md names every setting of every process, with its default."""

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from crosscope.app.settings import DEFAULT_HOST, DEFAULT_PORT
from crosscope_proto.v1 import annotations_pb2, jobs_pb2, latents_pb2, looks_pb2, prompts_pb2, system_pb2
from crosscope_server.settings import Settings
from crosscope_worker.jobs.settings import JobSettings
from crosscope_worker.serve.settings import ServeSettings

SERVICES = (annotations_pb2, jobs_pb2, latents_pb2, looks_pb2, prompts_pb2, system_pb2)
SHARED = {"home": "CROSSCOPE_HOME", "store": "CROSSCOPE_STORE", "store_cache_bytes": "CROSSCOPE_STORE_CACHE_BYTES"}
"""Settings that several processes have alike, in the first table."""
PAGE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()


def table_behind(command: str) -> dict[str, str]:
    """Variable to default, of the first table behind the line that begins with a command."""
    text = PAGE[PAGE.index(f"\n`{command}`:") :]
    lines = text[text.index("\n| variable") + 1 :].split("\n\n")[0].splitlines()[2:]
    return {cells[1].strip(" `"): cells[2].strip(" `") for cells in (line.split("|") for line in lines)}


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("python -m crosscope_server", Settings),
        ("python -m crosscope_worker serve", ServeSettings),
        ("python -m crosscope_worker jobs", JobSettings),
    ],
)
def test_every_setting_stands_in_the_table_with_its_default(command: str, settings: type[BaseSettings]) -> None:
    prefix = settings.model_config.get("env_prefix", "")
    fields = {f"{prefix}{name.upper()}": field for name, field in settings.model_fields.items() if name not in SHARED}
    table = table_behind(command)
    assert set(table) == set(fields)
    for variable, field in fields.items():
        if not field.is_required() and field.default not in (None, ()):
            assert table[variable] == str(field.default), variable
    for name, variable in SHARED.items():
        field = settings.model_fields[name]
        assert field.validation_alias == variable
        default = "none" if field.default is None else f"`{field.default}`" if name == "home" else str(field.default)
        assert re.search(rf"\| `{variable}` \|[^|]*\| {re.escape(default)} \|", PAGE), variable


def test_the_apps_defaults() -> None:
    table = table_behind("python -m crosscope.app")
    assert (table["CROSSCOPE_APP_HOST"], table["CROSSCOPE_APP_PORT"]) == (DEFAULT_HOST, str(DEFAULT_PORT))


def test_every_method_says_what_bounds_it() -> None:
    services = [service for file in SERVICES for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {f"{service.name}.{method.name}" for service in services for method in service.methods}
    rows = PAGE[PAGE.index("### What bounds each call") :].splitlines()
    named = [name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+\.\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(methods)
