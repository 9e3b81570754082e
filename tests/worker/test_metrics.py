import os
import threading

import prometheus_client
import pytest
from fixtures_waiting import PATIENCE_S
from metrics_table import documented, exposed

from crosscope_proto.ages import Ages
from crosscope_proto.exposition import expose
from crosscope_worker.device_use import DeviceUse
from crosscope_worker.jobs.metrics import Metrics as JobsMetrics
from crosscope_worker.serve.metrics import DeviceThread
from crosscope_worker.serve.metrics import Metrics as InferenceMetrics


def page(metrics: InferenceMetrics | JobsMetrics) -> str:
    return prometheus_client.generate_latest(metrics.registry).decode()


def described(process: str) -> dict[str, tuple[str, frozenset[str]]]:
    rows = documented().items()
    return {name: (each.kind, each.labels) for name, each in rows if {process, "all"} & set(each.processes.split(", "))}


def test_the_table_says_what_the_inference_process_exposes() -> None:
    metrics = InferenceMetrics(Ages())
    metrics.called("Encode", "OK")
    metrics.ran_batch([0.5, 0.25], 30, 0.01)
    for index in (0, 1):
        metrics.watch_device(f"cuda:{index}", lambda index=index: 10 + index, 90)
    metrics.watch_use(DeviceUse(("cpu",)))
    with metrics.part("tokenise"):
        pass
    assert exposed(page(metrics)) == described("inference")
    for line in (
        "crosscope_inference_batch_texts_sum 2.0",
        "crosscope_inference_batch_tokens_sum 30.0",
        'crosscope_inference_part_seconds_sum{part="queue"} 0.75',
        'crosscope_inference_part_seconds_sum{part="device"} 0.02',
        'crosscope_inference_part_seconds_count{part="tokenise"} 1.0',
        'crosscope_device_memory_allocated_bytes{device="cuda:1"} 11.0',
        'crosscope_device_memory_limit_bytes{device="cuda:0"} 90.0',
    ):
        assert line in page(metrics).splitlines()


def test_the_table_says_what_the_job_worker_exposes() -> None:
    metrics = JobsMetrics(DeviceUse(("cpu",)), Ages())
    metrics.began(os.getpid())
    during = page(metrics).splitlines()
    assert "crosscope_job_attempt_running 1.0" in during
    assert any(line.startswith("crosscope_job_resident_bytes") and float(line.split()[1]) > 1e6 for line in during)
    metrics.ended("succeeded")
    assert exposed(page(metrics)) == described("jobs")
    assert 'crosscope_job_attempts_total{outcome="succeeded"} 1.0' in page(metrics)
    assert "crosscope_job_resident_bytes 0.0" in page(metrics).splitlines()


def test_a_device_thread_ages_while_it_works_and_rests_between() -> None:
    metrics, may_end = InferenceMetrics(Ages()), threading.Event()
    with DeviceThread(metrics) as thread:
        begun = threading.Event()

        def work() -> str:
            begun.set()
            may_end.wait(PATIENCE_S)
            return "done"

        answer = thread.submit(work)
        assert begun.wait(PATIENCE_S)
        while not (age := metrics.ages.age_s("device")):
            pass
        may_end.set()
        assert answer.result(10) == "done"
        with pytest.raises(ZeroDivisionError):
            thread.submit(lambda: 1 // 0).result(10)
    assert metrics.ages.age_s("device") == 0
    busy = metrics.registry.get_sample_value("crosscope_inference_device_busy_seconds_total")
    assert busy is not None
    assert busy >= age


def test_a_taken_port_is_named_with_its_variable() -> None:
    metrics = InferenceMetrics(Ages())
    web, thread = prometheus_client.start_http_server(0, "127.0.0.1", metrics.registry)
    try:
        with pytest.raises(OSError, match=f"{web.server_port}.*CROSSCOPE_WORKER_METRICS_PORT"):
            expose(metrics.registry, web.server_port, "CROSSCOPE_WORKER_METRICS_PORT")
    finally:
        web.shutdown()
        web.server_close()
        thread.join()
