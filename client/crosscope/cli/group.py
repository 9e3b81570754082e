"""The command group and its list of commands. A command is imported when it is called, so that help is fast."""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import click

from crosscope import __version__
from crosscope.cli.options import ROOT_OPTIONS, Options, apply


class _Entry(NamedTuple):
    module: str | None
    """None: crosscope-local has the command, as an entry point of the group LOCAL_COMMANDS."""
    help: str


LOCAL_COMMANDS = "crosscope.commands"
_COMMANDS = {
    "demo": _Entry(None, "Make and browse the demo: two small models and their crosscoders."),
    "up": _Entry(None, "Start the server, its workers and the app on this machine."),
    "doctor": _Entry(None, "Check that this machine can run everything."),
    "backup": _Entry(None, "Write everything that is published, said and queued as one archive."),
    "restore": _Entry(None, "Put an archive back into an empty home."),
    "gc": _Entry(None, "Remove what is of no use any more."),
    "store": _Entry(None, "Move what is published between a home and a store that machines share."),
    "tokens": _Entry(None, "Say who may call the server of a home: add, list and revoke tokens."),
    "audit": _Entry(None, "Show who changed what, and who was refused."),
    "certs": _Entry(None, "Make certificates for TLS."),
    "status": _Entry("crosscope.cli.status", "Show what answers, what is published, and what is wrong."),
    "look": _Entry("crosscope.cli.looks", "Show where the models of a pair differ, before any training."),
    "submit": _Entry("crosscope.cli.jobs", "Queue a recipe."),
    "plan": _Entry("crosscope.cli.jobs", "Check a recipe, and say what its job would take."),
    "jobs": _Entry("crosscope.cli.jobs", "List jobs, or show one."),
    "watch": _Entry("crosscope.cli.jobs", "Follow a job until it ends."),
    "log": _Entry("crosscope.cli.jobs", "Show the end of a job's log."),
    "cancel": _Entry("crosscope.cli.jobs", "Stop jobs."),
    "retry": _Entry("crosscope.cli.jobs", "Queue failed jobs again; they go on from their checkpoints."),
    "crosscoders": _Entry("crosscope.cli.latents", "List published crosscoders, or show one."),
    "latents": _Entry("crosscope.cli.latents", "List latents by conditions."),
    "latent": _Entry("crosscope.cli.latents", "Show one latent and its examples."),
    "search": _Entry("crosscope.cli.search", "Find latents by a text or a regular expression."),
    "label": _Entry("crosscope.cli.words", "Label a latent, note something about it, star it, or show its words."),
    "lists": _Entry("crosscope.cli.words", "Show, make and change lists of latents."),
    "annotations": _Entry("crosscope.cli.annotations", "List, export and import labels, notes, stars and lists."),
    "groups": _Entry("crosscope.cli.groups", "Show which latents one model alone has, by what fires together."),
    "match": _Entry("crosscope.cli.groups", "Match the latents of two crosscoders of one pair."),
    "export": _Entry("crosscope.cli.export", "Write latents or a prompt as one HTML file."),
    "encode": _Entry("crosscope.cli.prompts", "Show which latents every token of a prompt fires."),
    "top": _Entry("crosscope.cli.prompts", "Rank the latents that a prompt fires; alone: show the installation live."),
    "tokenize": _Entry("crosscope.cli.prompts", "Show the tokens of a prompt and their roles."),
    "rates": _Entry("crosscope.cli.behaviours", "Show how often models show behaviours."),
    "compare": _Entry("crosscope.cli.effects", "Show how both models' predictions differ on a prompt."),
    "generate": _Entry("crosscope.cli.generation", "Continue a prompt with either model, or with latents changed."),
    "steer": _Entry("crosscope.cli.generation", "Continue a prompt with and without latents changed."),
    "attribute": _Entry("crosscope.cli.effects", "Rank the latents that carry a difference between the models."),
    "explain": _Entry("crosscope.cli.effects", "Say why the models differ on a prompt, and by which latents."),
    "contrast": _Entry("crosscope.cli.effects", "Rank the latents that tell two sets of prompts apart."),
    "completion": _Entry("crosscope.cli.completion", "Print the script that completes commands in a shell."),
}


class ReaderGone(Exception):
    """The reader of the output has ended."""


class LazyGroup(click.Group):
    """Imports the module of a command when the command is called; the short help texts stand here."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises ReaderGone for a broken pipe, for which click has an exit code of its own."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, D102
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, D102
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return _local_command(cmd_name) if entry.module is None else getattr(import_module(entry.module), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called. Raises UsageError for an unknown name, with the names that are like it."""
        near = get_close_matches(args[0], _COMMANDS)
        if args[0] not in _COMMANDS and near and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002, D102
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in _COMMANDS.items()])


def _local_command(name: str) -> click.Command:
    """A command of crosscope-local; if that is not installed, a command that says so."""
    found = next(iter(entry_points(group=LOCAL_COMMANDS, name=name)), None)
    if found is not None:
        return found.load()

    def refuse(**_: object) -> None:
        raise click.UsageError(
            f"'crosscope {name}' needs crosscope-local; in the source's folder: pip install ./store ./local."
        )

    arguments = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    anything = {"ignore_unknown_options": True}
    return click.Command(name, anything, refuse, [arguments], help="Needs crosscope-local, which is not installed.")


def _with(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    return lambda function: apply(options, function)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="crosscope")
@_with(ROOT_OPTIONS)
@click.pass_context
def crosscope(ctx: click.Context, **options: Any) -> None:
    """What did chat-tuning change inside a model?

    Exit codes: 0 done, 1 error from the server, 2 wrong usage or input, 3 no server answers, 4 the job failed or was
    cancelled, 130 Ctrl-C.
    """
    ctx.obj = Options(**options)
