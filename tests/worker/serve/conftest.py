import shutil
from pathlib import Path

import pytest
from fixtures_serve import random_crosscoder, write_version


@pytest.fixture
def home(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    """A folder with the pair "tiny" and the crosscoder "demo"."""
    shutil.copytree(tiny_pair_folder, tmp_path / "pairs" / "tiny")
    write_version(tmp_path, "demo", random_crosscoder())
    return tmp_path
