"""A job that is watched: bars in a terminal, lines elsewhere."""

from typing import TYPE_CHECKING

from crosscope import _cards, _tables
from crosscope.cli.output import console, print_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from crosscope import Job, JobInfo, JobUpdate

_LINE_EVERY = 0.1
"""Share of a stage between two lines."""
_WIDE = 80
"""Width of a terminal, in columns, from which messages stand beside the bars."""
_WHOLE = "whole job"
"""Name of the first bar; each other bar is a stage."""
_BAR = 30
"""Width of a bar in a wide terminal, in columns."""


def time_left(info: "JobInfo") -> str:
    """How long the whole job will still take, as "about 9 min left"; empty if nobody knows."""
    return f"about {_tables.duration(info.eta_s)} left" if info.eta_s else ""


def print_lines(job: "Job") -> None:
    """Prints a line at each new stage and state, and at each tenth of a stage."""
    last: tuple[object, ...] = ()
    for update in job.updates():
        info = update.job
        mark = (info.state, info.stage, int(info.fraction / _LINE_EVERY))
        if mark != last:
            print_text(_line(info))
        last = mark


def _line(info: "JobInfo") -> str:
    stage = f"{info.stage} {info.fraction:4.0%}  " if info.stage else ""
    if stage and not info.state.is_over:
        stage += f"(whole job {_cards.job_progress(info)})  "
    return f"{info.id}  {info.state}  {stage}{_tables.printable(info.message)}".rstrip()


def show_bars(job: "Job") -> None:
    """Shows a bar for each stage, in a wide terminal with the job's message beside it."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    terminal = console()
    is_wide = terminal.width >= _WIDE
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_BAR if is_wide else None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    ]
    if is_wide:
        one_line = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns.append(TextColumn("{task.fields[message]}", markup=False, table_column=one_line))
    with Progress(*columns, console=terminal, expand=True) as progress:
        bars: dict[str, TaskID] = {_WHOLE: progress.add_task(f"{_WHOLE:<12}", total=1.0, message="")}
        for update in job.updates():
            _draw(progress, bars, update)
    print_text(_line(job.info))


def _draw(progress: "Progress", bars: "dict[str, TaskID]", update: "JobUpdate") -> None:
    info = update.job
    progress.update(bars[_WHOLE], completed=info.total_fraction, message=time_left(info))
    steps = [(event.stage, event.fraction, event.message) for event in update.events]
    if not info.state.is_over:
        steps.append((info.stage or str(info.state), info.fraction, info.message))
    for stage, fraction, message in steps:
        if stage and stage not in bars:
            _complete(progress, bars)
            bars[stage] = progress.add_task(f"{stage[:12]:<12}", total=1.0, message="")
        if stage:
            progress.update(bars[stage], completed=fraction, message=_tables.printable(message))
    if info.state == "succeeded":
        _complete(progress, bars, is_over=True)


def _complete(progress: "Progress", bars: "dict[str, TaskID]", *, is_over: bool = False) -> None:
    for name, bar in bars.items():
        if name != _WHOLE or is_over:
            progress.update(bar, completed=1.0)
