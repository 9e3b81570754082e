"""How the store stands, for Prometheus and for System. Asks no store: the last look counts."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from crosscope_proto.v1 import system_pb2
from crosscope_store.shelf import Shelf


class StoreCollector(Collector):
    """The figures of a shared shelf as Prometheus reads them."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def describe(self) -> list[Metric]:
        """Nothing: without a store there is nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        if (found := self._shelf.standing()) is None:
            return
        yield GaugeMetricFamily("crosscope_store_up", "Whether the store answered when last asked", found.is_up)
        yield GaugeMetricFamily("crosscope_store_published", "What the store holds", found.num_published)
        yield GaugeMetricFamily("crosscope_store_copies_bytes", "Copies of the store's files", found.copies_bytes)
        yield CounterMetricFamily("crosscope_store_fetched_bytes", "Bytes read from the store", found.fetched_bytes)
        yield CounterMetricFamily("crosscope_store_evicted_bytes", "Bytes of copies removed", found.evicted_bytes)


def store_status(shelf: Shelf) -> system_pb2.StoreStatus:
    """How the store stands, as a message."""
    if (found := shelf.standing()) is None:
        return system_pb2.StoreStatus(state=system_pb2.PART_STATE_ABSENT)
    return system_pb2.StoreStatus(
        state=system_pb2.PART_STATE_UP if found.is_up else system_pb2.PART_STATE_AWAY,
        url=found.url,
        sentence=found.sentence,
        published=found.num_published,
        copies_bytes=found.copies_bytes,
        limit_bytes=found.limit_bytes,
    )
