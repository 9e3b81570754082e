"""What importing a part loads, each time in a fresh interpreter. Who imports whom: test_rooms.py."""

import subprocess
import sys
import time

import pytest

_HEAVY = {"torch", "transformers", "redis", "pandas", "streamlit", "plotly", "pyarrow"}
_ALL_MODULES = """
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(("__main__", "_triton")):  # Triton comes only with torch's CUDA builds
        importlib.import_module(module.name)
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def loaded_after(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after running the code, which ends by printing them."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (
            "crosscope_proto",
            {
                "torch",
                "transformers",
                "redis",
                "pyarrow",
                "crosscope_server",
                "crosscope_worker",
                "crosscope",
                "crosscope_local",
            },
        ),
        ("crosscope_store", {"torch", "pyarrow", "s3fs", "crosscope_server", "crosscope_worker", "crosscope"}),
        ("crosscope_server", {"torch", "transformers", "streamlit", "crosscope_worker", "crosscope"}),
        ("crosscope_worker", {"streamlit", "crosscope", "crosscope_server"}),
        ("crosscope_local", {"torch", "transformers", "pyarrow", "crosscope_server", "crosscope_worker"}),
        (
            "crosscope",
            {"torch", "transformers", "redis", "rq", "crosscope_server", "crosscope_worker"},
        ),
    ],
)
@pytest.mark.slow
def test_no_module_of_a_part_loads_what_it_must_not(package: str, forbidden: set[str]) -> None:
    assert loaded_after(_ALL_MODULES.format(package=package)) & forbidden == set()


_NO_PROCESS = {
    "streamlit",
    "plotly",
    "pandas",
    "ray",
    "datasets",
    "fsspec",
    "s3fs",
    "botocore",
    "opentelemetry.exporter",
}
"""What no process loads before it is used: of a store only where one is set, of traces where spans go somewhere."""
_NO_TORCH = _NO_PROCESS | {"torch", "transformers", "scipy", "huggingface_hub"}


@pytest.mark.parametrize(
    ("start", "forbidden"),
    [
        ("from crosscope.cli import run; run(['--help'])", _NO_TORCH | {"grpc", "google", "numpy", "pydantic", "yaml"}),
        ("from crosscope.cli import run; run(['status', '--help'])", _NO_TORCH | {"grpc", "google", "pydantic"}),
        ("import crosscope_server.__main__, crosscope_server.serve", _NO_TORCH),
        ("import crosscope_worker.jobs.process", _NO_TORCH | {"pyarrow", "numpy", "grpc"}),
        ("import crosscope_worker.jobs.entry", _NO_TORCH | {"pyarrow", "numpy", "grpc", "rq", "prometheus_client"}),
        ("import crosscope_worker.serve.process", _NO_PROCESS - {"botocore"} | {"redis", "rq"}),  # transformers' own
        ("import crosscope_local.supervise, crosscope_local.run", _NO_TORCH | {"pyarrow", "numpy"}),
    ],
    ids=["help", "status", "server", "job-worker", "job", "inference", "up"],
)
def test_no_process_loads_at_its_start_what_it_does_not_need(start: str, forbidden: set[str]) -> None:
    code = f"import sys\nwas = sys.stdout; sys.stdout = sys.stderr\n{start}\nsys.stdout = was; print(*sys.modules)"
    found = loaded_after(code)
    assert (
        sorted(each for each in forbidden if any(name == each or name.startswith(f"{each}.") for name in found)) == []
    )


@pytest.mark.parametrize(
    "statement",
    ["import crosscope", "import crosscope.cli", "from crosscope import Client; Client()", "from crosscope import *"],
)
def test_the_client_is_light(statement: str) -> None:
    found = loaded_after(f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})")
    assert found & (_HEAVY | {"crosscope_server", "crosscope_worker"}) == set()


def test_import_crosscope_loads_nothing_until_a_name_is_used() -> None:
    found = loaded_after("import sys\nimport crosscope\nprint(*{name.partition('.')[0] for name in sys.modules})")
    assert found & {"grpc", "numpy", "google", "yaml", "click", "rich", "crosscope_proto"} == set()


def test_a_client_loads_numpy_with_the_first_array_only() -> None:
    statement = "from crosscope import Client; Client()"
    assert "numpy" not in loaded_after(f"{statement}\nimport sys\nprint(*sys.modules)")


@pytest.mark.parametrize("settings", ["serve.settings", "jobs.settings"])
def test_a_worker_judges_its_settings_without_torch(settings: str) -> None:
    found = loaded_after(f"import crosscope_worker.{settings}, sys\nprint(*sys.modules)")
    assert found & {"torch", "transformers"} == set()


@pytest.mark.parametrize("statement", ["import crosscope", "import crosscope.cli"])
def test_import_takes_less_than_300_ms(statement: str) -> None:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    assert min(_seconds(code) for _ in range(5)) < 0.3


def _seconds(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_help_of_the_command_line_takes_less_than_half_a_second() -> None:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from crosscope.cli import run; run(['--help'])"], capture_output=True, check=True
        )
        return time.perf_counter() - started

    assert min(once() for _ in range(5)) < 0.5
