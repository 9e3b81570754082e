"""The demo's jobs, submitted through the public API and found again after a stop. Knows no process."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosscope import Client, CrosscopeError, Job, JobInfo, JobState
from crosscope_local.preflight import PreflightError
from crosscope_proto.artefacts import PAIR_MANIFEST, pair_folder
from crosscope_proto.recipe import RecipeError, parse_recipe

RECIPES = ("demo-pair.yaml", "demo-l1.yaml", "demo.yaml")
"""The first makes the pair; each of the others makes a crosscoder of it. The app opens the newest, so the main one is
last."""

_JOBS_LOOKED_AT = 500

Note = Callable[[str, JobInfo | None], None]
"""Called on every change with the title of a step and its job; None: an earlier run made the result."""


@dataclass(frozen=True)
class Step:
    """One recipe of the demo."""

    path: Path
    kind: str
    name: str

    @property
    def title(self) -> str:
        """The step as people read it."""
        return f"{'pair' if self.kind == 'demo-pair' else self.kind} {self.name}"


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: Step
    job: JobInfo | None
    """None if an earlier run made the result."""

    @property
    def failure(self) -> str | None:
        """A sentence if the step failed; None if it succeeded."""
        if self.job is None or self.job.state is JobState.SUCCEEDED:
            return None
        return f"{self.step.title} {self.job.state}: {self.job.message or 'no reason was given'}"


def read_steps(folder: Path) -> list[Step]:
    """The demo's recipes; raises PreflightError about a recipe that is missing or wrong."""
    steps: list[Step] = []
    for name in RECIPES:
        path = folder / name
        try:
            recipe = parse_recipe(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PreflightError(
                f"The recipe {path} cannot be read ({error.strerror}); name the folder of the recipes with --recipes."
            ) from error
        except (RecipeError, UnicodeDecodeError) as error:
            raise PreflightError(f"The recipe {path} is wrong: {error}") from error
        steps.append(Step(path, recipe.kind, recipe.name))
    return steps


def find_recipes() -> Path:
    """The folder of the demo's recipes: ./recipes, else the one of the checkout that this package runs from."""
    here, checkout = Path("recipes"), Path(__file__).resolve().parents[2] / "recipes"
    return here if (here / RECIPES[0]).is_file() or not checkout.is_dir() else checkout


class Demo:
    """Runs the demo's steps on a server that is up."""

    def __init__(self, client: Client, home: Path, steps: Sequence[Step], note: Note) -> None:
        self._client = client
        self._home = home
        self._steps = steps
        self._note = note

    def run(self) -> list[Outcome]:
        """Reuses what is published, finds jobs that are under way, submits the rest, and waits for all of them.

        Raises CrosscopeError when the server no longer answers.
        """
        jobs = self._begin()
        followers = [_Follower(step, jobs[step.title], self._note) for step in self._steps]
        for follower in followers:
            follower.start()
        return [follower.outcome() for follower in followers]

    def _begin(self) -> dict[str, Job | None]:
        published = {each.name for each in self._client.crosscoders() if not each.info.broken}
        open_jobs = [job for job in self._client.jobs.list(limit=_JOBS_LOOKED_AT) if not job.state.is_over]
        jobs: dict[str, Job | None] = {}
        pair: Job | None = None
        for step in self._steps:
            job = next((job for job in open_jobs if (job.info.kind, job.info.name) == (step.kind, step.name)), None)
            if job is None and not self._is_there(step, published):
                job = self._client.jobs.submit(step.path, after=[pair] if pair else [])
            if step.kind == "demo-pair":
                pair = job
            jobs[step.title] = job
            self._note(step.title, job.info if job else None)
        return jobs

    def _is_there(self, step: Step, published: set[str]) -> bool:
        if step.kind == "demo-pair":
            return (self._home / pair_folder(Path(), step.name) / PAIR_MANIFEST).is_file()
        return step.name in published


class _Follower(threading.Thread):
    """Follows one job to its end, as a daemon: the program does not wait for it when it ends."""

    def __init__(self, step: Step, job: Job | None, note: Note) -> None:
        super().__init__(daemon=True)
        self._step, self._job, self._note = step, job, note
        self._error: CrosscopeError | None = None

    def run(self) -> None:
        """Notes every change of the job."""
        if self._job is None:
            return
        try:
            for update in self._job.updates():
                self._note(self._step.title, update.job)
        except CrosscopeError as error:
            self._error = error

    def outcome(self) -> Outcome:
        """Waits for the job's end; raises the CrosscopeError that interrupted the following."""
        self.join()
        if self._error:
            raise self._error
        return Outcome(self._step, self._job.info if self._job else None)
