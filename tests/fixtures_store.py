"""A server that speaks S3, as a process of its own, and what a process needs to reach it."""

import itertools
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures_ports import free_port


class S3Server:
    """moto's server: buckets in memory. It takes every key."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which fsspec finds it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.address,
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "of-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Starts it, unless it runs; it has forgotten its buckets."""
        if self._process is not None:
            return
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/moto-api/data.json", timeout=5).close()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert time.monotonic() < until, "moto's server does not answer"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def bucket(self) -> str:
        """The URL of a new bucket's folder."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        self.send("PUT", name)
        return f"s3://{name}/crosscope"

    def send(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.address}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.read()


@contextmanager
def s3_server() -> Generator[S3Server]:
    """A server that answers."""
    server = S3Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def files_below(folder: Path) -> Iterator[str]:
    """The files of a folder by their path below it."""
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
