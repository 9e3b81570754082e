"""publish: a version appears whole or not at all; real full disks, real concurrent readers."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import PairManifest
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import BEHAVIOUR_COLUMNS, EXAMPLE_COLUMNS, LATENT_COLUMNS, SEQUENCE_COLUMNS
from crosscope_worker.analysis import Analysis
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.recipes.publish import (
    GRACE_S,
    Provenance,
    make_current,
    publish,
    read_current,
    remove_old_versions,
)
from crosscope_worker.work import Cancelled, LostClaim

NUM_LATENTS = 600
PROVENANCE = Provenance(
    pair=PairManifest("tiny", "base", "chat", "chat"), layer=2, recipe={"kind": "crosscoder"}, training_tokens=7
)


def crosscoder(seed: int = 0) -> Crosscoder:
    generator = torch.Generator().manual_seed(seed)
    return Crosscoder(
        W_enc=torch.randn(8, NUM_LATENTS, generator=generator),
        b_enc=torch.zeros(NUM_LATENTS),
        W_dec=torch.randn(NUM_LATENTS, 8, generator=generator),
        b_dec=torch.zeros(8),
        d_model=(4, 4),
        variant="l1",
    )


def analysis(mark: float = 0.0) -> Analysis:
    """Tables with a few rows; latent j has one example for every even j, and `max` is `mark` everywhere."""
    latents = arrow_schema(LATENT_COLUMNS)
    rows = [{"id": j, "latent_class": "shared", "max": mark} for j in range(NUM_LATENTS)]
    examples = [
        {"latent": j, "dataset": "chats", "group": "top", "quantile": 0, "rank": 0, "sequence": 0, "max": 1.0}
        | {"positions": [1], "values": [1.0]}
        for j in range(0, NUM_LATENTS, 2)
    ]
    sequence = {"id": 0, "dataset": "chats", "token_ids": [2, 5], "pieces": ["<bos>", "a"], "roles": [2, 1]}
    return Analysis(
        latents=pa.Table.from_pylist(rows, schema=latents),
        sequences=pa.Table.from_pylist([sequence], schema=arrow_schema(SEQUENCE_COLUMNS)),
        examples=pa.Table.from_pylist(examples, schema=arrow_schema(EXAMPLE_COLUMNS)),
        behaviours=arrow_schema(BEHAVIOUR_COLUMNS).empty_table(),
        datasets=("chats",),
        num_tokens=2,
        num_shards=1,
        metrics={"fve_base": 0.9, "fve_base_inliers": float("nan")},
        class_counts={"shared": NUM_LATENTS},
        histogram_edges=(0.1, 1.0),
    )


def allow() -> None:
    pass


def version_of(home: Path, name: str = "demo") -> Path:
    folder = Path(layout.crosscoder_folder(home, name))
    return folder / "versions" / str(read_current(folder))


def test_a_version_is_complete_and_loads(tmp_path):
    cc, curves = crosscoder(), [(1, "fve_base", 0.5), (2, "fve_base", 0.75)]
    manifest = publish(tmp_path, "demo", cc, PROVENANCE, analysis(), curves, allow)
    folder = version_of(tmp_path)
    assert folder.name == manifest.version_id
    assert read_manifest(folder) == manifest
    assert torch.equal(load_crosscoder(folder).W_dec, cc.W_dec)
    assert manifest.metrics == {"fve_base": 0.9}
    assert pq.read_table(folder / layout.METRICS).to_pylist()[1] == {"step": 2, "name": "fve_base", "value": 0.75}
    assert not (folder / layout.BEHAVIOURS).exists()
    assert {layout.WEIGHTS, layout.LATENTS, layout.SEQUENCES, "examples/part-00.parquet"} <= manifest.hashes.keys()
    assert not list(folder.parent.parent.rglob(".tmp-*"))


def test_every_latent_is_found_in_its_part_and_row_group(tmp_path):
    publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(), [], allow)
    for latent in (0, 17, 48, 598):
        file = pq.ParquetFile(version_of(tmp_path) / layout.EXAMPLES / layout.example_part(latent, NUM_LATENTS))
        groups = [file.read_row_group(i)["latent"].to_pylist() for i in range(file.num_row_groups)]
        assert sum(latent + latent % 2 in group for group in groups) == 1
        for group in groups:
            assert len({each // layout.EXAMPLE_LATENTS_PER_ROW_GROUP for each in group}) == 1
        file.close()


@pytest.mark.parametrize("refusal", [LostClaim, Cancelled])
def test_a_refusing_fence_publishes_nothing(tmp_path, refusal):
    first = publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(), [], allow)

    def refuse() -> None:
        raise refusal

    with pytest.raises(refusal):
        publish(tmp_path, "demo", crosscoder(1), PROVENANCE, analysis(), [], refuse)
    assert version_of(tmp_path).name == first.version_id
    assert [each.name for each in version_of(tmp_path).parent.iterdir()] == [first.version_id]


def test_the_fence_is_asked_when_everything_is_written(tmp_path):
    seen: list[set[str]] = []

    def look() -> None:
        seen.extend({each.name for each in folder.iterdir()} for folder in tmp_path.rglob(".tmp-*") if folder.is_dir())

    publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(), [], look)
    assert len(seen) == 1
    assert {layout.MANIFEST, layout.WEIGHTS, layout.LATENTS, layout.EXAMPLES} <= seen[0]


@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_a_full_disk_leaves_nothing_and_says_what_is_needed(tmp_path, limit):
    """The kernel refuses bytes beyond a file-size limit: 2 kB stops the tables, 20 kB the weights."""
    publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(), [], allow)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    script = f"""
        import importlib.util, resource, sys
        from pathlib import Path
        spec = importlib.util.spec_from_file_location("publishing", {__file__!r})
        publishing = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(publishing)
        from crosscope_worker.recipes.publish import PublishError, publish
        weights, tables = publishing.crosscoder(1), publishing.analysis(1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            publish(Path({str(tmp_path)!r}), "demo", weights, publishing.PROVENANCE, tables, [], publishing.allow)
        except PublishError as error:
            sys.exit(str(error))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "bytes are needed" in done.stderr
    assert "Traceback" not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == {path: before[path] for path in after}
    assert before.keys() - {path for path in before if path.is_dir()} == after.keys()


def test_readers_see_whole_versions_while_they_are_swapped(tmp_path):
    publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(0.0), [], allow)
    done, failures, reads = threading.Event(), [], []

    def read() -> None:
        while not done.is_set():
            try:
                folder = version_of(tmp_path)
                marks = set(pq.read_table(folder / layout.LATENTS, columns=["max"])["max"].to_pylist())
                manifest = read_manifest(folder)
            except Exception as error:
                failures.append(error)
                return
            reads.append((manifest.version_id, marks))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    ids = [publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(i), [], allow).version_id for i in range(1, 8)]
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert ids == sorted(ids)
    assert all(len(marks) == 1 for _, marks in reads)
    assert len({version for version, _ in reads}) > 1


def test_old_versions_go_after_the_grace_period(tmp_path):
    ids = [publish(tmp_path, "demo", crosscoder(i), PROVENANCE, analysis(), [], allow).version_id for i in range(4)]
    folder = Path(layout.crosscoder_folder(tmp_path, "demo"))
    newest = max(each.stat().st_mtime for each in (folder / "versions").iterdir())
    assert remove_old_versions(folder, newest) == []
    removed = remove_old_versions(folder, newest + GRACE_S + 1)
    assert sorted(removed) == ids[:2]
    assert sorted(each.name for each in (folder / "versions").iterdir()) == ids[2:]
    assert version_of(tmp_path).name == ids[3]


def test_what_a_killed_attempt_left_is_swept(tmp_path):
    publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(), [], allow)
    folder = Path(layout.crosscoder_folder(tmp_path, "demo"))
    left = folder / "versions" / ".tmp-20200101T000000000-1"
    left.mkdir()
    (left / "latents.parquet").write_bytes(b"half")
    remove_old_versions(folder, left.stat().st_mtime + 1)
    assert left.exists()
    remove_old_versions(folder, left.stat().st_mtime + GRACE_S + 1)
    assert not left.exists()


def test_an_attempt_killed_between_the_two_last_renames_is_completed(tmp_path):
    first = publish(tmp_path, "demo", crosscoder(), PROVENANCE, analysis(), [], allow)
    second = publish(tmp_path, "demo", crosscoder(1), PROVENANCE, analysis(), [], allow)
    current = Path(layout.crosscoder_folder(tmp_path, "demo")) / layout.CURRENT
    current.write_text(f"{first.version_id}\n")

    def refuse() -> None:
        raise LostClaim

    with pytest.raises(LostClaim):
        make_current(tmp_path, second, refuse)
    assert read_current(current.parent) == first.version_id
    make_current(tmp_path, second, allow)
    assert read_current(current.parent) == second.version_id
    make_current(tmp_path, first, allow)
    assert read_current(current.parent) == second.version_id
    assert sorted(each.name for each in current.parent.iterdir()) == ["CURRENT", "versions"]
