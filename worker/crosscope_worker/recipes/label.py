"""The job that has latents labelled. Knows the order of the steps; what is asked is in labelling/."""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from crosscope_proto.artefacts import (
    CURRENT,
    MANIFEST,
    WEIGHTS,
    CrosscoderManifest,
    crosscoder_folder,
    version_folder,
)
from crosscope_proto.label_specs import NOTHING, Cost, Endpoint
from crosscope_proto.labels import SCORES, MadeLabel, MadeLabels, labels_path, labels_text
from crosscope_proto.manifest import ManifestError, parse_manifest
from crosscope_proto.recipe import LabelRecipe
from crosscope_proto.stages import Stage
from crosscope_worker.addresses import check_address, is_local
from crosscope_worker.disk import write_whole
from crosscope_worker.labelling.asking import FAILED, Answers, Asker
from crosscope_worker.labelling.choice import Chosen, choose
from crosscope_worker.labelling.endpoint import Client
from crosscope_worker.labelling.errors import LabelError
from crosscope_worker.labelling.examples import ExampleFile, Texts
from crosscope_worker.labelling.explainer import EndpointExplainer, Explainer
from crosscope_worker.labelling.labeller import Outcome, cost_of, label_latent, side_by_side
from crosscope_worker.work import ANSWERS, Progress, Workspace

MAX_FAILURES = 5
"""After this many latents in a row to which the explainer did not answer, the job fails and can be retried."""

log = logging.getLogger(__name__)


def make_labels(recipe: LabelRecipe, workspace: Workspace, progress: Progress) -> MadeLabels:
    """Labels and scores latents of a crosscoder, and leaves the labels for a server to take in.

    Goes on where an earlier attempt of the job stood: answers that came are not asked for again. Raises
    LabelError for a version that cannot be read, and where nothing can be labelled or the budget is too small,
    AddressError, what loading a pair raises, and whatever `progress` and `workspace.fence` raise.
    """
    began = time.time()
    if isinstance(recipe.explainer, Endpoint):
        check_address(recipe.explainer.address, workspace.label_addresses)
    progress(Stage.LOAD, 0.0, f"reading the crosscoder {recipe.name}")
    folder, manifest = _version(recipe, workspace.home)
    workspace.shelf.need_all(folder, but=[WEIGHTS])
    examples = ExampleFile(folder, manifest)
    chosen = choose(examples.latents, recipe.latents)
    work = _Work(recipe, examples)
    cost = work.cost(chosen, progress)
    _check_budget(recipe, cost, len(chosen.latents))
    answers = Answers(workspace.checkpoints / ANSWERS)
    try:
        resumed = f"; {len(answers)} answers are there from before" if len(answers) else ""
        progress(Stage.LABEL, 0.0, f"labelling {len(chosen.latents)} latents takes {cost}{resumed}")
        asker = Asker(answers, recipe.budget, _named(recipe))
        with _explainer(recipe, manifest, asker, workspace, progress) as (explainer, author):
            outcomes = _label(chosen.latents, work, explainer, asker, recipe, progress)
            notes = [*_notes(outcomes, chosen, asker), *explainer.notes(), *_whereabouts(workspace)]
    finally:
        answers.close()
    made = _made(outcomes, notes, manifest, author, workspace.folder.name, began)
    progress(Stage.PUBLISH, 0.0, "handing the labels over", metrics=_metrics(outcomes, asker))
    write_whole(workspace.folder / "labels.json", labels_text(made))
    workspace.fence()
    path = Path(labels_path(workspace.home, workspace.folder.name))
    path.parent.mkdir(exist_ok=True)
    write_whole(path, labels_text(made))
    return made


def _whereabouts(workspace: Workspace) -> list[str]:
    """A sentence where a server on another machine would not see the labels."""
    if not workspace.shelf.is_shared:
        return []
    path = workspace.folder / "labels.json"
    return [f"Labels do not go through the store: a server with another home than {workspace.home} needs {path}."]


class _Work:
    """The texts of latents."""

    def __init__(self, recipe: LabelRecipe, examples: ExampleFile) -> None:
        self._recipe, self._examples = recipe, examples
        self._largest = examples.latents.column("max").to_numpy()
        self._lock = threading.Lock()

    def cost(self, chosen: Chosen, progress: Progress) -> Cost:
        """What all of them take."""
        found = NOTHING
        for number, latent in enumerate(chosen.latents):
            found += cost_of(self.texts(latent), self._recipe.explainer)
            progress(Stage.LOAD, 0.9 * (number + 1) / len(chosen.latents), "counting what it takes")
        return found

    def texts(self, latent: int) -> Texts:
        """The texts of a latent."""
        with self._lock:
            return self._examples.texts(latent, float(self._largest[latent]), self._recipe.examples)

    def label(self, explainer: Explainer, latent: int) -> Outcome:
        """What comes of a latent."""
        return label_latent(latent, self.texts(latent), explainer)


def _version(recipe: LabelRecipe, home: Path) -> tuple[Path, CrosscoderManifest]:
    folder = Path(crosscoder_folder(home, recipe.name))
    found = folder
    try:
        version_id = recipe.version or (folder / CURRENT).read_text("utf-8").strip()
        found = Path(version_folder(home, recipe.name, version_id))
        return found, parse_manifest((found / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        there = ", ".join(sorted(each.name for each in (folder / "versions").glob("[!.]*"))[:20]) or "none"
        which = f"version {recipe.version} of the " if recipe.version else ""
        raise LabelError(f"there is no {which}crosscoder {recipe.name!r} (versions: {there})") from error
    except ManifestError as error:
        raise LabelError(f"{found / MANIFEST}: {error}") from error


def _named(recipe: LabelRecipe) -> str:
    """What tells the answers of an explainer from those of others."""
    explainer = recipe.explainer
    return f"{explainer.address} {explainer.model} {explainer.body}" if isinstance(explainer, Endpoint) else "chat"


def _check_budget(recipe: LabelRecipe, cost: Cost, num_latents: int) -> None:
    for name, needed, limit in (
        ("requests", cost.requests, recipe.budget.requests),
        ("tokens", cost.tokens, recipe.budget.tokens),
    ):
        if needed > limit:
            raise LabelError(
                f"labelling {num_latents} latents takes {cost} and up to {cost.answer_tokens} of answers, but "
                f"budget.{name} is {limit}; raise it to {needed}, or label fewer with latents.limit or "
                "examples.held_out"
            )


@contextmanager
def _explainer(
    recipe: LabelRecipe, manifest: CrosscoderManifest, asker: Asker, workspace: Workspace, progress: Progress
) -> Generator[tuple[Explainer, str]]:
    """The explainer of a recipe, and its name."""
    spec = recipe.explainer
    if not isinstance(spec, Endpoint):
        from crosscope_worker.recipes.label_chat import chat_explainer  # torch, which a job with an endpoint needs not

        progress(Stage.LABEL, 0.0, f"loading the pair {manifest.pair.name}")
        yield chat_explainer(manifest, asker, workspace), f"chat model of {manifest.pair.name}"[:100]
        return
    key = os.environ.get(spec.key, "") if spec.key else None
    if key == "":
        raise LabelError(f"the job worker has no variable {spec.key} with the key of {spec.address}; set it there")
    stopping = threading.Event()
    client = Client(spec, key, stopping, is_local=is_local(spec.address))
    try:
        yield EndpointExplainer(asker, client, spec.per_request), spec.model
    finally:
        stopping.set()
        client.close()


def _label(
    latents: Sequence[int],
    work: _Work,
    explainer: Explainer,
    asker: Asker,
    recipe: LabelRecipe,
    progress: Progress,
) -> list[Outcome]:
    """What comes of each latent. Raises LabelError if the explainer does not answer any more."""
    num_threads = recipe.explainer.concurrency if isinstance(recipe.explainer, Endpoint) else 1
    found: list[Outcome] = []
    failures = 0
    for outcome in side_by_side(latents, partial(work.label, explainer), num_threads):
        if outcome is not None:
            found.append(outcome)
            failures = failures + 1 if outcome.reason == FAILED else 0
            if outcome.reason:
                log.warning("latent %d got no label: %s", outcome.latent, outcome.detail or outcome.reason)
            if failures >= MAX_FAILURES:
                raise LabelError(f"the explainer did not answer for {failures} latents in a row: {outcome.detail}")
        labelled = sum(not each.reason for each in found)
        metrics = None if outcome is None else _metrics(found, asker)
        said = f"{labelled} labelled, {len(found) - labelled} without, of {len(latents)}; {_spent(asker)}"
        progress(Stage.LABEL, len(found) / len(latents), said, step=len(found), metrics=metrics)
    return sorted(found, key=lambda outcome: outcome.latent)


def _spent(asker: Asker) -> str:
    spent = asker.spent
    return f"{spent.requests} requests, {spent.prompt_tokens} tokens of prompts, {spent.answer_tokens} of answers"


def _metrics(outcomes: Sequence[Outcome], asker: Asker) -> dict[str, float]:
    """Figures of the job: counts, and the mean of each score over the latents that have it."""
    spent = asker.spent
    found: dict[str, float] = {
        "labelled": sum(not each.reason for each in outcomes),
        "unlabelled": sum(bool(each.reason) for each in outcomes),
        "texts_not_judged": sum(each.num_unjudged for each in outcomes),
        "requests": spent.requests,
        "prompt_tokens": spent.prompt_tokens,
        "answer_tokens": spent.answer_tokens,
    }
    for name in SCORES:
        if values := [each.scores[name] for each in outcomes if name in each.scores]:
            found[f"mean_{name}"] = sum(values) / len(values)
    return found


def _made(
    outcomes: Sequence[Outcome],
    notes: Sequence[str],
    manifest: CrosscoderManifest,
    author: str,
    job: str,
    made_at: float,
) -> MadeLabels:
    unlabelled: dict[str, list[int]] = defaultdict(list)
    for each in outcomes:
        if each.reason:
            unlabelled[each.reason].append(each.latent)
    return MadeLabels(
        crosscoder=manifest.name,
        weights=manifest.weights_id,
        num_latents=manifest.num_latents,
        author=author,
        job=job,
        made_at=made_at,
        labels=tuple(MadeLabel(each.latent, each.label, each.scores) for each in outcomes if not each.reason),
        unlabelled={reason: tuple(latents) for reason, latents in unlabelled.items()},
        notes=tuple(notes),
    )


def _notes(outcomes: Sequence[Outcome], chosen: Chosen, asker: Asker) -> Generator[str]:
    yield f"{_spent(asker)}."
    for name in SCORES:
        if missing := sum(not each.reason and name not in each.scores for each in outcomes):
            yield f"Labels without a score by {name}: {missing}."
    if unjudged := sum(each.num_unjudged for each in outcomes):
        yield f"Texts that were not judged: {unjudged}."
    if chosen.num_left_out:
        yield f"Latents that meet the conditions and lie behind latents.limit: {chosen.num_left_out}."
