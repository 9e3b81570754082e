"""The notebook of examples/ runs as it stands, against the real pipeline."""

import importlib.util
import json
import re
from typing import Any

import pytest

from crosscope import Job

from .conftest import ROOT, Stack, wait_until_prompts_are_served

NOTEBOOK = json.loads((ROOT / "examples" / "diff.ipynb").read_text("utf-8"))


def executor() -> Any:
    spec = importlib.util.spec_from_file_location("execute", ROOT / "examples" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_outputs_are_stored_and_name_no_place_of_a_machine() -> None:
    for number, cell in enumerate(code_cells(NOTEBOOK), 1):
        assert cell["execution_count"] == number
        assert cell["outputs"], f"cell {cell['id']} has no output; run python examples/execute.py"
        assert {output["output_type"] for output in cell["outputs"]} <= {"stream", "execute_result"}
    found = re.findall(r"(?<![\w.<])/(?:tmp|home|root|usr|work)/[\w/]*", json.dumps(NOTEBOOK))
    assert found == []


@pytest.mark.slow
def test_every_cell_runs(stack: Stack, made: tuple[Job, Job], monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until_prompts_are_served(stack.client)
    monkeypatch.setenv("CROSSCOPE_ADDRESS", stack.address)
    executed = executor().execute(NOTEBOOK)
    assert [cell["source"] for cell in executed["cells"]] == [cell["source"] for cell in NOTEBOOK["cells"]]
    assert all(cell["outputs"] for cell in code_cells(executed))


def test_a_cell_that_fails_is_named() -> None:
    cells = [{"cell_type": "code", "source": ["x = 1\n", "x"]}, {"cell_type": "code", "source": ["x / 0"]}]
    with pytest.raises(ZeroDivisionError) as caught:
        executor().execute({"cells": cells})
    assert "in cell 1:\nx / 0" in caught.value.__notes__
    done = executor().execute({"cells": cells[:1]})["cells"][0]
    assert done["outputs"][0]["data"] == {"text/plain": ["1"]}
