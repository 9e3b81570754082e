"""Limits are written once in code; documents that name their numbers name the same ones."""

import re
from pathlib import Path

import pytest

from crosscope_proto.limits import MAX_NU_ERR, MAX_NU_REC

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["README.md", "docs/math.md"])
def test_documents_name_the_limits_of_the_code(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    found = {which: set(re.findall(rf"nu_{which} [<>] ([\d.]*\d)", text)) for which in ("err", "rec")}
    assert found == {"err": {str(MAX_NU_ERR)}, "rec": {str(MAX_NU_REC)}}
