"""No module outside a variant's own file knows the name of the variant."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import crosscope_worker
from crosscope_proto.dictionaries import VARIANTS, dictionary
from crosscope_worker.training.variants import variant_of

ROOT = Path(crosscope_worker.__file__).parent
OWN = ROOT / "training" / "variants"
PUBLISHED = ROOT / "dictionary" / "published"
"""Other people's layouts have names of rules that are the same words; they name, but compare no spec."""
CLASSES = {each.__name__ for each in VARIANTS.values()}


def named(path: Path) -> Iterator[str]:
    """The variants that a module names, as a text or by the class of the spec."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in VARIANTS and not path.is_relative_to(PUBLISHED):
            yield f"{path.relative_to(ROOT)}:{node.lineno} says {node.value!r}"
        if isinstance(node, ast.ImportFrom) and node.module == "crosscope_proto.dictionaries":
            yield from (
                f"{path.relative_to(ROOT)}:{node.lineno} imports {each.name}"
                for each in node.names
                if each.name in CLASSES
            )
        if isinstance(node, ast.Attribute) and node.attr in CLASSES and ast.unparse(node.value) == "dictionaries":
            yield f"{path.relative_to(ROOT)}:{node.lineno} uses {node.attr}"
        if isinstance(node, ast.Compare) and any(
            isinstance(each, ast.Attribute) and each.attr == "variant" for each in (node.left, *node.comparators)
        ):
            yield f"{path.relative_to(ROOT)}:{node.lineno} compares {ast.unparse(node)}"


def test_no_module_outside_names_a_variant():
    modules = [path for path in ROOT.rglob("*.py") if not path.is_relative_to(OWN)]
    assert len(modules) > 80
    assert [each for path in modules for each in named(path)] == []


def test_the_search_finds_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(
        'from crosscope_proto.dictionaries import L1\nx = spec.variant == y\nz = "dfc"\nw = dictionaries.Delta\n'
    )
    assert len(list(named(tmp_path / "a.py"))) == 4


FIELDS = {"k": 2, "mu": 0.1, "num_shared": 2, "shared_penalty": 0.5, "num_base_only": 1, "num_chat_only": 1}
FIELDS |= {"num_delta": 4, "k_delta": 1, "delta_weight": 1.0}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_spec_has_a_file_of_its_name(name: str):
    own = {field: value for field, value in FIELDS.items() if field in VARIANTS[name].__dataclass_fields__}
    spec = dictionary(variant=name, num_latents=16, **own)
    made = variant_of(spec, (8, 8))
    assert type(made).__module__ == f"crosscope_worker.training.variants.{name}"
    assert made.widths == ((8,) if spec.reads == "difference" else (8, 8))
    assert sum(made.widths) == spec.width(8, 8)
