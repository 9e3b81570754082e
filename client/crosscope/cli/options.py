"""The options that every command takes, before or after its name, and the client that they describe."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from crosscope import Client, Crosscoder


@dataclass(frozen=True)
class Options:
    """What the options of one run say: which server is asked, and how results are printed."""

    as_json: bool = False
    address: str | None = None
    token: str | None = None
    timeout_s: float | None = None
    version_id: str | None = None
    """The version that a command about one crosscoder asks; None for the current one."""

    def client(self) -> "Client":
        """A client of the server that the options name."""
        from crosscope import Client

        if self.timeout_s is None:
            return Client(self.address, self.token)
        return Client(self.address, self.token, self.timeout_s)

    def crosscoder(self, client: "Client", name: str) -> "Crosscoder":
        """A crosscoder in the version that the options name, else in its current one."""
        return client.crosscoder(name, self.version_id)


Option = Callable[[Any], Any]
ROOT_OPTIONS: tuple[Option, ...] = (
    click.option("--json", "as_json", is_flag=True, help="Print JSON: one document, or a line an item for streams."),
    click.option("--address", metavar="HOST:PORT", help="Server [CROSSCOPE_ADDRESS, else localhost:50051]."),
    click.option("--token", help="Token of the server; better in CROSSCOPE_TOKEN, which `ps` does not show."),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds a call may take; ten times as many to generate, attribute, explain or contrast [60].",
    ),
)


def apply(options: tuple[Option, ...], function: Any) -> Any:
    """The function with click options; help lists them in the order given."""
    for option in reversed(options):
        function = option(function)
    return function


def json_before_name() -> bool:
    """Whether --json stands before the name of a command that asks no server.

    Raises UsageError if --address, --token or --timeout stands there, because only a command that asks a server can
    use them.
    """
    root = click.get_current_context().find_root().obj
    options = root if isinstance(root, Options) else Options()
    misplaced = {"--address": options.address, "--token": options.token, "--timeout": options.timeout_s}
    for option, value in misplaced.items():
        if value is not None:
            raise click.UsageError(f"this command asks no running server, so {option} cannot stand before its name")
    return options.as_json


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command its Options as the first argument, from what stands after its name and before it."""

    @click.pass_context
    @wraps(function)
    def command(
        ctx: click.Context,
        /,
        *arguments: Any,
        as_json: bool,
        address: str | None,
        token: str | None,
        timeout_s: float | None,
        version_id: str | None = None,
        **own: Any,
    ) -> Any:
        root = ctx.find_root().obj
        options = root if isinstance(root, Options) else Options()
        given = {"address": address, "token": token, "timeout_s": timeout_s, "version_id": version_id}
        options = replace(
            options, as_json=as_json or options.as_json, **{k: v for k, v in given.items() if v is not None}
        )
        return function(options, *arguments, **own)

    return apply(ROOT_OPTIONS, command)


def with_version(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like with_options, for a command about one crosscoder: it also takes the id of the version to ask."""
    return click.option("--version", "version_id", metavar="ID", help="Ask this version [the current one].")(
        with_options(function)
    )


def latent_ids(texts: Iterable[str], option: str) -> list[int]:
    """The latents that the values of an option name. Raises UsageError."""
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit())]:
        raise click.UsageError(f"{option}: {wrong[0]!r} is no latent id; write 7 or 3,5,9")
    return [int(part) for part in parts]
