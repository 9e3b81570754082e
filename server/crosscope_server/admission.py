"""Who is let in, refused and moved to another worker, as Prometheus and `GetCapabilities` read it. Counts nothing."""

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from crosscope_server.dispatch import Dispatch, Why
from crosscope_server.door import Door
from crosscope_server.refusals import Reason


class Admission(Collector):
    """The figures of a door and of what lies behind it."""

    def __init__(self, door: Door, dispatch: Dispatch, label: Callable[[str], str]) -> None:
        """`label` is what a caller is called."""
        self._door = door
        self._dispatch = dispatch
        self._label = label

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        refused = CounterMetricFamily("crosscope_refused", "Calls that were refused", labels=["reason"])
        for reason in Reason:
            refused.add_metric([reason], self._dispatch.refused[reason])
        yield refused
        moved = CounterMetricFamily("crosscope_moved_calls", "Calls asked of another worker", labels=["why"])
        for why in Why:
            moved.add_metric([why], self._dispatch.moved[why])
        yield moved
        inside = GaugeMetricFamily("crosscope_door_calls", "Prompt calls under way", labels=["caller"])
        for caller, number in self._by_label().items():
            inside.add_metric([caller], number)
        yield inside
        yield GaugeMetricFamily("crosscope_door_limit", "Prompt calls that may be under way", self._door.most)

    def _by_label(self) -> Counter[str]:
        """Calls under way, by what their callers are called."""
        found = Counter({self._label(""): 0})
        for caller, number in dict(self._door.inside).items():
            found[self._label(caller)] += number
        return found

    @property
    def num_inside(self) -> int:
        """Prompt calls under way, those that wait among them."""
        return self._door.inside.total()

    @property
    def most_inside(self) -> int:
        """Prompt calls that may be under way."""
        return self._door.most

    @property
    def num_waiting(self) -> int:
        """Prompts that wait for a worker."""
        return self._dispatch.prompts.num_waiting

    def refused_lately(self) -> dict[str, int]:
        """Refusals of the last ten seconds, by reason."""
        return {str(reason): number for reason, number in self._dispatch.refused.lately().items()}
