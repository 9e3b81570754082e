"""A cache, a queue or a disk that is away for a while: what goes on meanwhile, and that all goes on by itself after.

The disk is a small file system in memory, mounted in name spaces of the user's own; where the system has none, that row
says so.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from crosscope import Client, CrosscopeError
from tests.stress.rows import minutes, say
from tests.stress.up import Callers, Up, Work, page, patient, prompt, running, same_prompt, until

SMALL_DISK = "CROSSCOPE_STRESS_SMALL_DISK"
"""The folder of the small disk, in the process that runs in name spaces of its own."""
DISK_MB = 900
REFUSED_WITHIN_S = 1.0


@contextlib.contextmanager
def away(up: Up, role: str) -> Iterator[None]:
    """Kills the queue or the cache, and keeps it from starting by holding its folder's lock."""
    victim = up.pid(role)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    with (up.home / role / "lock").open("rb+") as lock:
        until(lambda: _locked(lock.fileno()), 10)
        yield
    until(lambda: up.pid(role), 90)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def without_cache(up: Up, hold_s: float) -> None:
    """Prompts go on, known and new ones."""
    with Callers(up.address, same_prompt, 2) as known, Callers(up.address, prompt, 2) as new:
        time.sleep(3)
        before = len(known.took) + len(new.took)
        with away(up, "cache"):
            time.sleep(hold_s)
        during = len(known.took) + len(new.took) - before
        time.sleep(3)
    refused = len(known.refused) + len(new.refused)
    longest = max(known.longest_s, new.longest_s)
    value = f"{during} prompts answered meanwhile, {refused} refused, longest wait {longest:.1f} s"
    say(f"cache away for {hold_s:.0f} s", value, "", "prompts go on", ok=during > hold_s and not refused)


def without_queue(up: Up, hold_s: float) -> None:
    """Prompts and pages go on; calls about jobs are refused at once; the running job goes on."""
    work = Work(up)
    work.submit(1, steps=900)
    until(work.running, 120)
    with Callers(up.address, prompt, 2) as prompts, Callers(up.address, page, 1) as pages:
        time.sleep(2)
        begun = len(prompts.took), len(pages.took)
        with away(up, "queue"):
            slowest = _slowest_refusal(up, hold_s)
        during = len(prompts.took) - begun[0], len(pages.took) - begun[1]
        refused = len(prompts.refused) + len(pages.refused)
    lost, doubled, attempts = work.outcome()
    value = (
        f"{during[0]} prompts and {during[1]} pages answered meanwhile, {refused} refused; slowest refusal of a call "
        f"about jobs {slowest:.2f} s; its job: {lost} lost, {doubled} published twice, {attempts} attempts"
    )
    ok = (
        min(during) > hold_s
        and not refused
        and slowest < REFUSED_WITHIN_S
        and not lost
        and not doubled
        and attempts == 1
    )
    say(f"queue away for {hold_s:.0f} s", value, "", "prompts, pages, running jobs go on; refusals < 1 s", ok)


def _slowest_refusal(up: Up, hold_s: float) -> float:
    """The longest that a single try of a call about jobs took, in seconds."""
    import grpc

    from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc

    slowest, end = 0.0, time.monotonic() + hold_s
    with grpc.insecure_channel(up.address) as channel:
        stub = jobs_pb2_grpc.JobsStub(channel)
        while time.monotonic() < end:
            begun = time.monotonic()
            with contextlib.suppress(grpc.RpcError):
                stub.ListJobs(jobs_pb2.ListJobsRequest(), timeout=30)
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.5)
    return slowest


def with_a_full_disk(up: Up, hold_s: float) -> None:
    """Fills the disk to the last byte, waits, and makes room again."""
    work = Work(up)
    work.submit(2)
    until(work.running, 120)
    ballast = up.home / "ballast"
    with Callers(up.address, page, 1) as pages, Callers(up.address, prompt, 1) as prompts:
        time.sleep(2)
        before, end = len(pages.took), time.monotonic() + hold_s
        while time.monotonic() < end:
            _fill(ballast)
            time.sleep(0.5)
        during = len(pages.took) - before
        told = up.told(r"The disk of .* is full")
        ballast.unlink()
        with Client(up.address, timeout_s=30) as client:
            states = _ended(work, client)
            for job_id in (job_id for job_id, state in states.items() if state != "succeeded"):
                patient(lambda job_id=job_id: client.jobs.get(job_id).retry())
        lost, doubled, _ = work.outcome()
        again = len(prompts.took)
        goes_on = until(lambda: len(prompts.took) > again + 3, 60)
    failed = [state for state in states.values() if state != "succeeded"]
    value = (
        f"{during} pages answered meanwhile; {len(failed)} of {len(states)} jobs failed {failed}, {lost} lost "
        f"after a retry, {doubled} published twice; told: {bool(told)}; all goes on: {goes_on}"
    )
    ok = during > hold_s and bool(told) and goes_on and not lost and not doubled
    say(
        f"disk full for {hold_s:.0f} s",
        value,
        "",
        "reads go on; jobs wait or fail with a sentence; all goes on after",
        ok,
    )


def _fill(ballast: Path) -> None:
    """Takes what is left, the reserve too once it was freed."""
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def _ended(work: Work, client: Client) -> dict[str, str]:
    """How each job ended: "succeeded", or its message."""
    states: dict[str, str] = {}

    def see() -> bool:
        with contextlib.suppress(CrosscopeError):
            for job_id in work.ids:
                job = client.jobs.get(job_id)
                if job.state.is_over:
                    states[job_id] = "succeeded" if job.state == "succeeded" else job.info.message
        return len(states) == len(work.ids)

    until(see, 300)
    return states


def on_a_small_disk(hold_s: float) -> None:
    """Runs `with_a_full_disk` in name spaces of its own, where a file system can be mounted."""
    enter = shutil.which("unshare")
    with tempfile.TemporaryDirectory(prefix="crosscope-disk-") as folder:
        mount = f'mount -t tmpfs -o size={DISK_MB}m none {folder} && exec "$@"'
        probe = [enter, "-Urm", "sh", "-c", mount, "sh"] if enter else []
        if not enter or subprocess.run([*probe, "true"], capture_output=True, check=False).returncode:
            say(f"disk full for {hold_s:.0f} s", "not run: no user name spaces here", "", "", ok=True)
            return
        environment = {**os.environ, SMALL_DISK: folder}
        subprocess.run([*probe, sys.executable, __file__, str(hold_s)], env=environment, check=True)


def main() -> int:
    """All three, one after the other."""
    if SMALL_DISK in os.environ:
        with running("--reserve-mb", "50", below=os.environ[SMALL_DISK]) as up:
            with_a_full_disk(up, float(sys.argv[1]))
        return 0
    only = sys.argv[1:] or ["cache", "queue", "disk"]
    if {"cache", "queue"} & set(only):
        with running() as up:
            if "cache" in only:
                without_cache(up, min(60.0, 12 * minutes()))
            if "queue" in only:
                without_queue(up, min(60.0, 12 * minutes()))
    if "disk" in only:
        on_a_small_disk(min(120.0, 24 * minutes()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
