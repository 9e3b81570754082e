"""How the client's modules hang together: no circles, and one description of the calls."""

import ast
import runpy
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "client"
PACKAGE = CLIENT / "crosscope"
MODULES = {
    ".".join(path.relative_to(CLIENT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def public_homes() -> dict[str, str]:
    """The module of every public name, as the package's stub lists them."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    lines = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"crosscope.{line.module}" for line in lines for alias in line.names}


def imports(path: Path, homes: dict[str, str]) -> set[str]:
    """The client's modules that a module imports anywhere: in functions and for the type checker, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                public = homes.get(alias.name) if node.module == "crosscope" else None
                found.add(public or (below if below in MODULES else node.module))
    return found & set(MODULES)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, from one module back to itself; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circle_of_imports() -> None:
    homes = public_homes()
    graph = {name: imports(path, homes) for name, path in MODULES.items()}
    assert {"crosscope._decode", "crosscope._async.transport"} <= graph["crosscope._async.crosscoder"]
    assert "crosscope._sync.client" in graph["crosscope.cli.options"], "imports for the type checker count"
    assert circle(graph) == []
    graph["crosscope._types"].add("crosscope._encoding")
    assert set(circle(graph)) >= {"crosscope._types", "crosscope._encoding"}


def test_the_blocking_half_is_written_from_the_asynchronous_one() -> None:
    blocking = runpy.run_path(str(CLIENT / "generate.py"))["blocking"]
    sources = {path.name: path.read_text() for path in (PACKAGE / "_async").glob("*.py")}
    written = {path.name: path.read_text() for path in (PACKAGE / "_sync").glob("*.py")}
    assert written == {name: blocking(text, name) for name, text in sources.items()}, "run `make sdk`"


def test_the_modules_for_asyncio_and_for_threads_have_the_same_names() -> None:
    def names(module: str) -> set[str]:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        found = {node.name for node in tree.body if isinstance(node, kinds)}
        targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        return {name for name in found if not name.startswith("_")}

    assert names("_aio") == names("_blocking")
