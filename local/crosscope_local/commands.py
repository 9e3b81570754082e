"""The commands `up`, `demo` and `doctor`: options in, exit code out. Other modules do the work."""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from crosscope import Client, CrosscopeError
from crosscope.cli.options import apply
from crosscope_local import demo as demo_jobs
from crosscope_local import doctor as doctor_checks
from crosscope_local.config import Config, ConfigError, read_config
from crosscope_local.logs import Keep
from crosscope_local.options import HOME, STORE, FiniteRange, json_option
from crosscope_local.preflight import PreflightError
from crosscope_local.programs import Installation
from crosscope_local.run import Ending, Wanted, installation, run
from crosscope_local.summary import Summary, finite, summarise
from crosscope_local.summary_table import render
from crosscope_local.supervise import Supervisor
from crosscope_local.terminal import JobBoard, Terminal
from crosscope_proto.label_specs import checked_address

_READY_WITHIN_S = 180.0
_PORT = click.IntRange(0, 65535)
_VERDICT_STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}


_LOCATION = (
    HOME,
    click.option("--address", default="127.0.0.1", show_default=True, help="Where server and app listen."),
    click.option("--port", default=50051, show_default=True, type=_PORT, help="The server's port; 0: a free one."),
    click.option("--app-port", default=8501, show_default=True, type=_PORT, help="The app's port; 0: a free one."),
)
"""Options that say where an installation lies and listens."""


def _checked_addresses(given: Iterable[str]) -> tuple[str, ...]:
    """The addresses of --label-address. Raises BadParameter."""
    parts = [part.strip() for text in given for part in text.split(",") if part.strip()]
    try:
        return tuple(map(checked_address, parts))
    except ValueError as error:
        raise click.BadParameter(f"{', '.join(parts)}: {error}") from error


def _plain_folders(_ctx: click.Context, _option: click.Parameter, folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """The folders of --data-root. Raises BadParameter for one that the variable for all of them cannot hold."""
    for folder in folders:
        if os.pathsep in str(folder):
            sentence = f"{folder} has {os.pathsep!r} in it, which stands between two folders; name a link to it"
            raise click.BadParameter(sentence)
    return folders


def _from_file(context: click.Context, _option: click.Parameter, file: Path | None) -> Config:
    """What --config says. Its options become the defaults of the command. Raises BadParameter."""
    if file is None:
        return Config()
    names = _names(context.command)
    try:
        config = read_config(file, options_of(context.command))
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error
    context.default_map = {str(names[name].name): value for name, value in config.options.items()}
    return config


def options_of(command: click.Command) -> dict[str, type]:
    """The options of a command that a file may set, each with the type of its value, as `read_config` takes them."""
    return {name: _type_of(option) for name, option in _names(command).items()}


def _names(command: click.Command) -> dict[str, click.Parameter]:
    names = {option.opts[0].removeprefix("--").replace("-", "_"): option for option in command.params}
    return {name: option for name, option in names.items() if name not in ("config", "json", "help")}


def _type_of(option: click.Parameter) -> type:
    """How an option's value is written in a file: bool, int, float, str, or list for several."""
    if getattr(option, "multiple", False):
        return list
    if getattr(option, "is_flag", False):
        return bool
    return {"integer range": int, "float range": float}.get(option.type.name, str)


_RUN = (
    click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        is_eager=True,
        callback=_from_file,
        help="A TOML file of these options and of the processes' settings.",
    ),
    *_LOCATION,
    STORE,
    click.option("--no-app", is_flag=True, help="Leave the app out."),
    click.option(
        "--data-root",
        "data_roots",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        envvar="CROSSCOPE_WORKER_DATA_ROOTS",
        callback=_plain_folders,
        show_envvar=True,
        help="A further folder from which jobs may read data and models; can be given several times.",
    ),
    click.option(
        "--label-address",
        "label_addresses",
        multiple=True,
        metavar="URL",
        envvar="CROSSCOPE_WORKER_LABEL_ADDRESSES",
        callback=lambda _ctx, _option, given: _checked_addresses(given),
        show_envvar=True,
        help="An endpoint on another machine that jobs may have label latents; can be given several times.",
    ),
    click.option(
        "--log-mb",
        type=FiniteRange(min=0.1),
        default=10,
        show_default=True,
        envvar="CROSSCOPE_LOG_MB",
        show_envvar=True,
        help="Size at which a process's log is put aside and begun anew.",
    ),
    click.option(
        "--log-files",
        type=click.IntRange(min=0),
        default=3,
        show_default=True,
        envvar="CROSSCOPE_LOG_FILES",
        show_envvar=True,
        help="How many logs of each process are kept beside the present one.",
    ),
    click.option(
        "--reserve-mb",
        type=click.IntRange(min=0),
        default=100,
        show_default=True,
        envvar="CROSSCOPE_RESERVE_MB",
        show_envvar=True,
        help="Room that is kept aside in the home and freed when the disk is full.",
    ),
    click.option(
        "--no-standby",
        is_flag=True,
        help="Keep no second inference worker ready; a restart then takes some seconds longer.",
    ),
    click.option(
        "--job-threads",
        type=click.IntRange(min=1),
        default=None,
        help="Threads of one operation of a job on the CPU.  [default: torch decides; the demo takes 1]",
    ),
    click.option(
        "--job-workers",
        type=click.IntRange(1, 64),
        default=None,
        help="Jobs that run at the same time.  [default: 1; the demo takes 2 if there are two cores]",
    ),
)
"""Options of the commands that run an installation."""


def _runs(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of _RUN, which it receives together as `wanted: Wanted`."""

    @functools.wraps(command)
    def runner(
        *,
        config: Config,
        home: Path,
        address: str,
        port: int,
        app_port: int,
        no_app: bool,
        data_roots: tuple[Path, ...],
        label_addresses: tuple[str, ...],
        job_threads: int | None,
        job_workers: int | None,
        no_standby: bool,
        log_mb: float,
        log_files: int,
        reserve_mb: int,
        store: str | None,
        **own: object,
    ) -> None:
        keep, reserve_bytes = Keep(round(log_mb * 1e6), log_files), reserve_mb * 1_000_000
        ports = port, None if no_app else app_port
        wanted = Wanted(
            *(home, address, *ports, data_roots, job_threads, job_workers, label_addresses, keep, reserve_bytes),
            store=store,
            with_standby=not no_standby,
            config=config,
        )
        command(wanted=wanted, **own)

    return apply(_RUN, runner)


def _at(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of _LOCATION."""
    return apply(_LOCATION, command)


@click.command()
@json_option("Print what happens as JSON, a line each.")
@_runs
def up(as_json: bool, wanted: Wanted) -> None:
    """Start queue, cache, workers, server and app, and keep them running until Ctrl-C."""
    terminal = Terminal(as_json=as_json)
    begun = time.monotonic()

    def act(supervisor: Supervisor) -> None:
        if _await(supervisor, list(supervisor.states())):
            terminal.say("info", f"Ready after {time.monotonic() - begun:.1f} s.")

    with _prepared(terminal, wanted) as found:
        _greet(terminal, found)
        ending = run(found, wanted, terminal, act, then_stop=False)
    _exit(terminal, ending, 0)


@click.command()
@click.option("--once", is_flag=True, help="End when the jobs have, with a summary.")
@json_option("The summary as JSON on standard output; only with --once.")
@click.option(
    "--recipes",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder of demo-pair.yaml, demo.yaml and demo-l1.yaml.  [default: recipes]",
)
@_runs
def demo(once: bool, as_json: bool, recipes: Path | None, wanted: Wanted) -> None:
    """Train the demo's pair and crosscoders on the spot, and browse them.

    The demo reuses what an earlier run has finished, and goes on with what it has begun.
    """
    if as_json and not once:
        raise click.UsageError("--json goes with --once: without it there is no end to summarise.")
    # With one thread each, jobs end with the same weights again, and two of them use two cores well.
    workers = wanted.job_workers or min(2, os.cpu_count() or 1)
    wanted = replace(wanted, job_threads=wanted.job_threads or 1, job_workers=workers)
    if once:
        wanted = replace(wanted, with_standby=False)
    terminal = Terminal(to_stderr=as_json)
    with _prepared(terminal, wanted) as found:
        steps = demo_jobs.read_steps(recipes or demo_jobs.find_recipes())
        _greet(terminal, found)
        board = JobBoard()
        with Client(found.own_address) as client, terminal.progress(board):
            play = _DemoRun(client, found, demo_jobs.Demo(client, found.home, steps, terminal.job), terminal, once)
            ending = run(found, wanted, terminal, play, then_stop=once)
    if play.summary and as_json:
        click.echo(json.dumps(finite(asdict(play.summary)), indent=2))
    elif play.summary:
        terminal.show(render(play.summary))
    _exit(terminal, ending, 1 if play.failures else 0, interrupted_is_failure=once and play.summary is None)


class _DemoRun:
    """Runs the demo's jobs beside the processes, and keeps the summary and the failures."""

    def __init__(
        self, client: Client, found: Installation, jobs: demo_jobs.Demo, terminal: Terminal, once: bool
    ) -> None:
        self._client, self._found, self._jobs, self._terminal, self._once = client, found, jobs, terminal, once
        self._begun = time.monotonic()
        self.summary: Summary | None = None
        self.failures: list[str] = []

    def __call__(self, supervisor: Supervisor) -> None:
        if not _await(supervisor, ["queue", "server"]):
            return
        self._terminal.say("info", f"The server is ready after {self._seconds()}.")
        outcomes = self._jobs.run()
        self.failures = [outcome.failure for outcome in outcomes if outcome.failure]
        for failure in self.failures:
            self._terminal.say("error", failure)
        everything = _await(supervisor, list(supervisor.states()))
        if self.failures or not everything:
            return
        if self._once:
            self.summary = summarise(self._client, outcomes, self._found.home)
            self._terminal.say("info", f"Everything is done after {self._seconds()}.")
        else:
            where = f"browse {self._found.app_url}" if self._found.app_url else f"the server is {self._found.address}"
            self._terminal.say("info", f"Everything is there after {self._seconds()}: {where}. Ctrl-C stops it all.")

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._begun:.1f} s"


@click.command()
@_at
@STORE
@json_option("Findings as JSON.")
def doctor(home: Path, address: str, port: int, app_port: int, store: str | None, as_json: bool) -> None:
    """Check that this machine has everything that crosscope needs."""
    findings = doctor_checks.examine(home.expanduser().absolute(), address, port, app_port, store)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table.grid(padding=(0, 2))
        for finding in findings:
            verdict = Text(finding.verdict, _VERDICT_STYLES[finding.verdict])
            table.add_row(finding.what, verdict, Text(finding.detail))
        Terminal().show(table)
    sys.exit(any(finding.verdict is doctor_checks.Verdict.BAD for finding in findings))


def _greet(terminal: Terminal, found: Installation) -> None:
    if found.app_url:
        terminal.say("info", f"App:    {found.app_url}")
    terminal.say("info", f"Server: {found.address}")
    terminal.say("info", f"Home:   {found.home} (logs in {found.home / 'logs'})")
    terminal.say("info", "Starting; Ctrl-C stops everything.")


def _await(supervisor: Supervisor, names: list[str]) -> bool:
    end = time.monotonic() + _READY_WITHIN_S
    return all(supervisor.wait_ready(name, max(end - time.monotonic(), 0)) for name in names)


@contextmanager
def _prepared(terminal: Terminal, wanted: Wanted) -> Generator[Installation]:
    """The checked installation; a refusal is printed as one sentence and ends the program with code 1."""
    os.environ.pop("CROSSCOPE_TOKEN", None)  # it may be another server's: here the home's own counts
    try:
        with installation(wanted, terminal.say) as found:
            yield found
    except PreflightError as error:
        terminal.say("error", str(error))
        sys.exit(1)


def _exit(terminal: Terminal, ending: Ending, code: int, *, interrupted_is_failure: bool = False) -> None:
    """Ends the program: with the code of the signal if it interrupted the work, 1 on an error, else `code`."""
    if ending.error is not None:
        if not isinstance(ending.error, CrosscopeError):
            raise ending.error
        terminal.say("error", str(ending.error))
        sys.exit(1)
    if ending.signals and interrupted_is_failure:
        name = signal.Signals(ending.signals[0]).name
        terminal.say("warning", f"Stopped by {name}; start it again and it goes on where it was.")
        sys.exit(128 + ending.signals[0])
    if ending.signals:
        terminal.say("info", "Stopped.")
    sys.exit(code or int(ending.failing and not ending.signals))
