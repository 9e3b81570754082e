"""What the figures of all processes share: a registry, and the port at which Prometheus reads it. Knows no figures."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, start_http_server

from crosscope_proto import __version__
from crosscope_proto.ages import Ages


def new_registry() -> CollectorRegistry:
    """A registry with the version that runs, and the memory, files and CPU time of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("crosscope_build", "The version that runs", registry=registry).info({"version": __version__})
    return registry


def show_ages(registry: CollectorRegistry, ages: Ages, process: str, *parts: str) -> None:
    """Shows the time since the last beat of each part of a process."""
    gauge = Gauge("crosscope_beat_age_seconds", "Time since the last beat", ["process", "part"], registry=registry)
    for part in parts:
        gauge.labels(process, part).set_function(lambda part=part: ages.age_s(part))


def expose(registry: CollectorRegistry, port: int, variable: str) -> Callable[[], None]:
    """Answers Prometheus at a port of this machine; returns what ends that.

    Raises OSError, whose strerror is a sentence that names the variable, if the port is taken.
    """
    try:
        web, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        sentence = f"cannot show metrics on port {port}: {error.strerror}; set {variable} to a free one"
        raise OSError(error.errno, sentence) from error

    def end() -> None:
        web.shutdown()
        web.server_close()
        thread.join()

    return end
