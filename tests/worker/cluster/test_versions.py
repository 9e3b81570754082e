"""A cluster or a node with other versions than the job worker: a sentence with both.

Ray is loaded by the tests, not with this module, which every process of the suite reads.
"""

from importlib.metadata import version

import pytest

from crosscope_worker.cluster.errors import ClusterError


def test_another_version_of_ray_or_python() -> None:
    from ray._private.utils import check_version_info

    from crosscope_worker.cluster.connected import sentence_of

    with pytest.raises(RuntimeError) as found:  # as ray.init raises it
        check_version_info({"ray_version": "2.50.0", "python_version": "3.10.1"}, "10.0.0.1")
    said = sentence_of(found.value, "10.0.0.1:6379")
    assert said.startswith(
        "the Ray cluster at 10.0.0.1:6379 runs other versions than this job worker; install the same"
    )
    for each in ("Ray: 2.50.0", "Python: 3.10.1", f"Ray: {version('ray')}"):
        assert each in said
    assert "\n" not in said


def test_another_version_on_a_node() -> None:
    from crosscope_worker.cluster.software import check_versions, versions

    check_versions(versions())
    here = version("torch").partition("+")[0]
    with pytest.raises(
        ClusterError, match=rf"^node .* has torch {here}, and the job worker has 1\.0; install torch==1\.0 there"
    ):
        check_versions(versions() | {"torch": "1.0"})


def test_a_node_without_the_package() -> None:
    from crosscope_worker.cluster.software import difference

    asked = {"crosscope-worker": "2.0", "torch": "1.0"}
    assert difference("10.0.0.2", asked | {"more": "1"}, asked) == ""
    assert difference("10.0.0.2", {"torch": "1.0"}, asked) == (
        "node 10.0.0.2 of the Ray cluster has no crosscope-worker, and the job worker has 2.0; install "
        "crosscope-worker==2.0 there, for the Python that `ray start` uses"
    )
