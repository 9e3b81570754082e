from collections.abc import Iterator

import pytest
from fixtures_ray import RayCluster, ray_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """A Ray cluster of two nodes with a CPU each."""
    with ray_cluster() as made:
        yield made
