from pathlib import Path

import pytest
import yaml

from crosscope import InvalidInput
from crosscope._recipes import recipe_text

RECIPE = """\
kind: crosscoder
# a comment
data:
  - {name: here, source: jsonl, path: texts.jsonl}
  - {name: many, source: parquet, path: "parts/*.parquet"}
  - {name: elsewhere, source: text, path: missing.txt}
  - {name: hub, source: hub, path: texts.jsonl}
"""


def test_data_beside_the_recipe_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").touch()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.parquet").touch()
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for given in (tmp_path / "recipe.yaml", str(tmp_path / "recipe.yaml")):
        paths = [data["path"] for data in yaml.safe_load(recipe_text(given))["data"]]
        assert paths == [f"{tmp_path}/texts.jsonl", f"{tmp_path}/parts/*.parquet", "missing.txt", "texts.jsonl"]


def test_a_crosscoder_beside_the_recipe_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "recipe.yaml"
    for given, sent in (("theirs", f"{tmp_path}/theirs"), ("someone/theirs", "someone/theirs")):
        path.write_text(f"kind: published\npath: {given}\n")
        assert yaml.safe_load(recipe_text(path))["path"] == sent


def test_a_file_with_nothing_to_change_is_sent_as_written(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert recipe_text(tmp_path / "recipe.yaml") == RECIPE


@pytest.mark.parametrize("text", ["kind: x\n", "{kind: x}", "kind: x", "a: [1,\n", "data: 7\n", "data: [7]\n", ""])
def test_text_and_files_that_are_no_recipe_are_left_to_the_server(tmp_path: Path, text: str) -> None:
    assert recipe_text(text) == text
    (tmp_path / "recipe.yaml").write_text(text)
    assert recipe_text(tmp_path / "recipe.yaml") == text


def test_a_dict_becomes_yaml() -> None:
    assert yaml.safe_load(recipe_text({"kind": "x", "layer": 3, "é": [1]})) == {"kind": "x", "layer": 3, "é": [1]}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read 'nowhere\.yaml': No such file"):
        recipe_text("nowhere.yaml")
    with pytest.raises(InvalidInput, match="cannot read"):
        recipe_text(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(InvalidInput, match="not UTF-8 at byte 9"):
        recipe_text(tmp_path / "latin.yaml")
    with pytest.raises(InvalidInput, match="YAML"):
        recipe_text({"name": object()})
    with pytest.raises(InvalidInput, match="recipe"):
        recipe_text(7)  # pyright: ignore[reportArgumentType]
