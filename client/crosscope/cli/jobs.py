"""`crosscope submit`, `plan`, `jobs`, `watch`, `log`, `cancel`, `retry`."""

import sys
from typing import TYPE_CHECKING

import click

from crosscope import _cards, _plans, _tables
from crosscope.cli.options import Options, with_options
from crosscope.cli.output import print_json, print_table, print_text, to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from crosscope import Job, JobInfo, Plan


@click.command()
@click.argument("recipe")
@click.option("--after", multiple=True, metavar="JOB", help="Start only once this job has succeeded.")
@click.option("--check", is_flag=True, help="Only check the recipe; queue nothing.")
@click.option("--watch", "follow", is_flag=True, help="Follow the job until it ends.")
@with_options
def submit(options: Options, recipe: str, after: tuple[str, ...], check: bool, follow: bool) -> None:
    """Queue RECIPE, a YAML file; "-" reads it from stdin."""
    with options.client() as client:
        job = client.jobs.submit(_source(recipe), after=after, validate_only=check)
        for warning in job.warnings:
            click.echo(f"warning: {warning}".encode("utf-8", "backslashreplace").decode(), err=True)
        if follow and not check:
            follow_job(options, job)
        elif options.as_json:
            print_json(job.info)
        elif check:
            count = len(job.warnings)
            found = f"can run, with {count} warning{'s' * (count > 1)}" if count else "is sound"
            print_text(f"the recipe {found}: it makes {job.info.kind} {job.info.name}")
        else:
            print_text(f"{job.id}\nfollow it with: crosscope watch {job.id}")


def _source(recipe: str) -> "str | Path":
    from pathlib import Path

    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if recipe == "-" else Path(recipe)


@click.command()
@click.argument("recipe")
@click.option("--after", multiple=True, metavar="JOB", help="As if it started once this job has succeeded.")
@click.option("--device", metavar="NAME", help="Plan for a device that was measured: h100, cpu.")
@with_options
def plan(options: Options, recipe: str, after: tuple[str, ...], device: str | None) -> None:
    """Check RECIPE, a YAML file or "-" for stdin, and say what its job would take. Queues and loads nothing.

    Without --device it plans for the job workers that listen now.
    """
    with options.client() as client:
        show_plan(options, client.jobs.plan(_source(recipe), after=after, device=device))


def show_plan(options: Options, found: "Plan") -> None:
    """Shows what a job would take."""
    if options.as_json:
        print_json(found)
        return
    print_text(f"{found.job.kind} {found.job.name}")
    _print_amounts(_plans.rows(found.entries))
    if found.disk.entries:
        print_text("\n" + _tables.printable(_plans.disk_line(found.disk)))
        _print_amounts(_plans.rows(found.disk.entries))
    for each in found.devices:
        print_text("\n" + _tables.printable(_plans.device_line(each)))
        for way in each.ways_out:
            print_text(f"  {_tables.printable(way)}")
        _print_amounts(_plans.device_rows(each))
        if each.rates:
            print_text(f"  rates: {_tables.printable(each.rates)}")
    for each in found.downloads:
        print_text(f"download: {_tables.printable(_plans.download_line(each))}")
    for warning in found.warnings:
        print_text(f"warning: {_tables.printable(warning)}")


def _print_amounts(rows: "Sequence[tuple[str, str, str]]") -> None:
    if rows:
        print_table(("what", "how much", "note"), [tuple(map(_tables.printable, row)) for row in rows])


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@click.option("--recipe", "with_recipe", is_flag=True, help="With JOB: print its recipe, to change and submit again.")
@with_options
def jobs(options: Options, job_id: str | None, limit: int, with_recipe: bool) -> None:
    """List jobs, newest first, or show the one with the id JOB."""
    if with_recipe and job_id is None:
        raise click.UsageError("--recipe needs the id of a JOB")
    with options.client() as client:
        if job_id is not None:
            job = client.jobs.get(job_id)
            if with_recipe:
                print_text(job.info.recipe_yaml.rstrip("\n"))
                return
            print_json(job.info) if options.as_json else print_text(str(job))
            return
        infos = [job.info for job in client.jobs.list(limit, recipes=options.as_json)]
    if options.as_json:
        print_json(infos)
        return
    rows = [
        (
            info.id,
            f"{info.kind} {info.name}",
            info.owner,
            info.state,
            _cards.job_progress(info),
            _where(info),
            info.message,
        )
        for info in infos
    ]
    titles = ("id", "makes", "owner", "state", "done", "stage", "message")
    print_table(titles, [tuple(map(_tables.printable, row)) for row in rows])


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--recipe", "with_recipe", is_flag=True, help="With --json: repeat the recipe in every line.")
@with_options
def watch(options: Options, job_id: str, with_recipe: bool) -> None:
    """Follow a job until it ends; exits with 4 if it failed or was cancelled. Ctrl-C leaves the job running."""
    with options.client() as client:
        follow_job(options, client.jobs.get(job_id), with_recipe=with_recipe)


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--lines", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most this many.")
@with_options
def log(options: Options, job_id: str, lines: int) -> None:
    """Show the end of a job's log: stages, errors, how each attempt ended. Secrets are masked."""
    with options.client() as client:
        found = client.jobs.log(job_id, lines)
    if options.as_json:
        print_json(found)
        return
    for line in _cards.log_lines(found):
        print_text(_tables.printable(line))


@click.command()
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@with_options
def cancel(options: Options, job_ids: tuple[str, ...]) -> None:
    """Stop jobs: at once if queued, at the next step if running."""
    with options.client() as client:
        infos = [client.jobs.cancel(job_id).info for job_id in job_ids]
    if options.as_json:
        print_json(infos)
        return
    for info in infos:
        print_text(f"{info.id}  {info.state if info.state.is_over else 'will stop at its next step'}")


@click.command()
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@with_options
def retry(options: Options, job_ids: tuple[str, ...]) -> None:
    """Queue failed or cancelled jobs again; they go on from their checkpoints.

    If a job waited for another one that failed, name both: first the one that failed.
    """
    with options.client() as client:
        infos = [client.jobs.retry(job_id).info for job_id in job_ids]
    if options.as_json:
        print_json(infos)
        return
    for info in infos:
        print_text(f"{info.id}  {info.state}\nfollow it with: crosscope watch {info.id}")


def _where(info: "JobInfo") -> str:
    return f"{info.stage} {info.fraction:.0%}" if info.stage else ""


def follow_job(options: Options, job: "Job", *, with_recipe: bool = False) -> None:
    """Shows how far a job is until it ends. Raises JobFailed or JobCancelled."""
    if options.as_json:
        for update in job.updates():
            document = to_plain(update)
            if not with_recipe:
                del document["job"]["recipe_yaml"]
            print_json(document)
    elif sys.stdout.isatty():
        from crosscope.cli.progress import show_bars

        show_bars(job)
    else:
        from crosscope.cli.progress import print_lines

        print_lines(job)
    job.wait()
