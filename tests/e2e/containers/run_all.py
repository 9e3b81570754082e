"""Runs in the namespaces of enter.sh: starts every container's command, asks for its health, gives it work, stops all.

Reads a plan from stdin: {"services": {name: {"command": […], "environment": {…}, "health": […] or null}}, "client":
[…], "client_environment": {…}}. Writes {"health": {name: bool}, "client": [code, output], "ended": {name: [code, last
lines]}}.
"""

import json
import subprocess
import sys
import time

_AS_CONTAINER = ["unshare", "--user", "--map-user=10001", "--map-group=10001", "setpriv", "--no-new-privs"]
"""A user without rights, who cannot gain any."""
_HEALTHY_WITHIN_S = 90.0
_CLIENT_WITHIN_S = 180.0
_END_WITHIN_S = 10.0


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """A container's process; it sees no variable but its own."""
    return subprocess.Popen(
        [*_AS_CONTAINER, "env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd="/tmp",
    )


def is_healthy(process: subprocess.Popen[str], command: list[str], environment: dict[str, str]) -> bool:
    """Whether the health check succeeds in time, while the process lives."""
    end = time.monotonic() + _HEALTHY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        check = start(command, environment)
        check.communicate()
        if check.returncode == 0:
            return True
        time.sleep(0.2)
    return False


def main() -> None:
    """Runs the plan."""
    plan = json.load(sys.stdin)
    services = plan["services"]
    running = {name: start(each["command"], each["environment"]) for name, each in services.items()}
    health = {
        name: is_healthy(running[name], each["health"], each["environment"])
        for name, each in services.items()
        if each["health"] is not None
    }
    client = start(plan["client"], plan["client_environment"])
    try:
        output, _ = client.communicate(timeout=_CLIENT_WITHIN_S)
    except subprocess.TimeoutExpired:
        client.kill()
        output = client.communicate()[0]
    for process in running.values():
        process.terminate()
    ended = {}
    for name, process in running.items():
        try:
            last, _ = process.communicate(timeout=_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            last = process.communicate()[0]
        ended[name] = [process.returncode, last[-3000:]]
    json.dump({"health": health, "client": [client.returncode, output], "ended": ended}, sys.stdout)


if __name__ == "__main__":
    main()
