"""`crosscope top` without a crosscoder: the installation live on a terminal, once in a pipe."""

import select
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from crosscope import Capabilities, Client, CrosscopeError
from crosscope._tables import aligned, printable
from crosscope.cli.options import Options
from crosscope.cli.output import console, print_json, print_text
from crosscope.cli.standing import jobs_of, parts_of, traffic_of

EVERY_S = 1.0
"""Time between two looks."""
_ASK_S = 3.0
"""How long one look may take: a server that stands still must not stop the picture."""
_JOB_HEADERS = ("job", "makes", "done", "speed", "doing")


def show_live(options: Options) -> None:
    """Shows the installation until somebody types q or Ctrl-C; in a pipe and as JSON once."""
    if sys.stdout.isatty() and not options.as_json:
        _follow(options)
        return
    with options.client() as client:
        found = client.capabilities()
        if options.as_json:
            print_json({"address": client.address, "capabilities": found})
        else:
            print_text("\n".join(picture(client.address, found)))


def picture(address: str, found: Capabilities) -> Iterator[str]:
    """The lines that show an installation at one moment."""
    yield f"crosscope {found.version} at {address}"
    yield ""
    for name, said in (*traffic_of(found), *parts_of(found)):
        yield f"{name:<8} {said}"
    if rows := list(jobs_of(found)):
        yield ""
        yield from aligned(_JOB_HEADERS, [tuple(map(printable, row)) for row in rows]).splitlines()
    yield ""
    yield from (f"! {problem}" for problem in found.problems)
    if not found.problems:
        yield "All is well."


def _follow(options: Options) -> None:
    from rich.live import Live
    from rich.text import Text

    with _client(options) as client, Live(console=console(), screen=True, auto_refresh=False) as live, _keys():
        while True:
            said = "\n".join([*_look(client), "", "q ends"])
            live.update(Text(said, no_wrap=True, overflow="ellipsis"), refresh=True)
            if _is_told_to_end():
                return


def _client(options: Options) -> Client:
    """A client that waits no longer for an answer than a picture may stand."""
    return Client(options.address, options.token, min(options.timeout_s or _ASK_S, _ASK_S))


def _look(client: Client) -> list[str]:
    """The lines of now; where the server does not answer, what to do about it."""
    try:
        return list(picture(client.address, client.capabilities()))
    except CrosscopeError as error:
        return [f"crosscope at {client.address}", "", f"! {error}"]


@contextmanager
def _keys() -> Generator[None]:
    """Gives keys to this program as they are typed, where there is a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _is_told_to_end() -> bool:
    """Waits until the next look; whether somebody typed q meanwhile."""
    watched = [sys.stdin] if sys.stdin.isatty() else []
    ready, _, _ = select.select(watched, [], [], EVERY_S)
    return bool(ready) and sys.stdin.read(1).lower() in ("q", "")
