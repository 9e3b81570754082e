"""The job that looks at a pair: compare, sweep, continue, write. Knows the order of these steps, and no formula."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from crosscope_proto.artefacts import look_folder
from crosscope_proto.looks import MANIFEST, LookManifest
from crosscope_proto.manifest import parse_look_manifest
from crosscope_proto.recipe import LookRecipe, recipe_dict
from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import TokenPolicy
from crosscope_proto.stages import Stage
from crosscope_worker.analysis.lens import find_lenses
from crosscope_worker.analysis.looks.continuations import Answer, continuations
from crosscope_worker.analysis.looks.first import FirstDifferences
from crosscope_worker.analysis.looks.heads import Heads
from crosscope_worker.analysis.looks.next_tokens import next_tokens
from crosscope_worker.analysis.looks.ranking import Compared, Finding, OpenTurn, Ranking
from crosscope_worker.analysis.looks.sweep import LayerShares, recommend, sweep, swept_layers
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.rows import DataError
from crosscope_worker.data.texts import Text, TextStream
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.places import PairError
from crosscope_worker.recipes.look_files import published_look, write_look
from crosscope_worker.recipes.look_tables import Looked, look_tables
from crosscope_worker.recipes.material import hash_models, load_models, load_tokenizer, open_texts
from crosscope_worker.sharing import Sharing
from crosscope_worker.tokenizer.token_policy import policy_positions
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import Progress, Workspace

TOKENS_PER_FORWARD = 2048
"""Tokens of one forward. The outputs of eight forwards are in memory at once."""


def make_look(recipe: LookRecipe, workspace: Workspace, progress: Progress) -> LookManifest:
    """Looks at a pair and puts what was found in the place of an earlier look of that name.

    If this job has written its look already, returns it. Raises PairError, RootError, DataError, HarvestError, OSError,
    and whatever `progress` and `workspace.fence` raise; then the earlier look stays.
    """
    folder = Path(look_folder(workspace.home, recipe.name))
    if (published := published_look(folder, workspace.folder.name)) is not None:
        return published
    sharing = Sharing.of(workspace, progress)
    if (kept := sharing.kept("looks")) is not None:
        manifest = parse_look_manifest((kept / MANIFEST).read_bytes())
        sharing.publish("looks", recipe.name, kept, folder, workspace.fence)
        return manifest
    began = time.time()
    pair = load_models(recipe, workspace, progress)
    progress(Stage.LOAD, 0.92, "trying both models on a few tokens")
    heads = Heads(pair)
    activations = PairActivations(pair, heads.layer)
    activations.check()
    tokenizer = load_tokenizer(recipe, pair, workspace)
    hashes = hash_models(pair, progress)
    texts = open_texts(recipe, recipe.tokens.policy, pair, tokenizer, "all", workspace, progress)
    looked = look_at(recipe, pair, tokenizer, heads, activations, texts, progress)
    progress(Stage.PUBLISH, 0.0, f"writing the look {recipe.name}")
    names = [spec.name for spec in recipe.data]
    ranking = looked.ranking
    swept = looked.findings[: recipe.sweep_tokens] if looked.layers else []
    manifest = LookManifest(
        name=recipe.name,
        pair=pair.manifest,
        hashes=hashes,
        recipe=recipe_dict(recipe),
        num_layers=pair.num_layers,
        layers=tuple(each.layer for each in looked.layers),
        datasets=tuple(names),
        num_tokens=ranking.num_tokens,
        num_texts=ranking.num_texts,
        num_folded=ranking.num_folded(looked.findings),
        sweep_tokens=len(swept),
        sweep_texts=len({each.compared.text for each in swept}),
        figures=ranking.figures(looked.findings),
        recommended_layer=looked.recommended[0],
        reason=looked.recommended[1],
        unavailable=looked.unavailable,
        skipped={name: each.refused for name, each in zip(names, texts.counts, strict=True) if each.refused},
        texts={name: each.plain() for name, each in zip(names, texts.counts, strict=True)},
        warnings=_warnings(recipe, ranking),
        chat_template_date=tokenizer.template.settings.date,
        job=workspace.folder.name,
        created_at=began,
    )
    return write_look(folder, manifest, look_tables(looked, names, tokenizer), workspace.fence, sharing)


def look_at(
    recipe: LookRecipe,
    pair: Pair,
    tokenizer: TextTokenizer,
    heads: Heads,
    activations: PairActivations,
    texts: TextStream,
    progress: Progress,
) -> Looked:
    """All that is found of a pair in some texts. Raises DataError if no token is compared."""
    layers = swept_layers(pair.num_layers, recipe.every)
    unavailable: dict[str, str] = {}
    first = None
    if pair.d_model[BASE] != pair.d_model[CHAT]:
        widths = f"the models have streams of width {pair.d_model[BASE]} and {pair.d_model[CHAT]}"
        unavailable["sweep"] = f"{widths}, and nothing of one fits into the other"
        unavailable["first"] = f"{widths}, which have no difference"
    elif recipe.first_positions:
        first = FirstDifferences(pair, layers, len(recipe.data), recipe.first_positions)
    ranking = _scan(recipe, heads, activations, texts, first, progress)
    findings = ranking.findings()
    following = next_tokens(heads, activations, findings, recipe.tokens.policy, TOKENS_PER_FORWARD)
    shares = _sweep(recipe, pair, heads, layers, findings, unavailable, progress)
    recommended = recommend(shares, pair.num_layers) if shares else (None, _no_layer(unavailable))
    lenses, reasons = find_lenses(pair) if first else ([], {})
    differences = first.found(lenses) if first else []
    turns = _continue(recipe, pair, tokenizer, ranking.turns(), unavailable, progress)
    return Looked(ranking, findings, following, differences, shares, turns, recommended, unavailable | reasons)


def _no_layer(unavailable: dict[str, str]) -> str:
    return f"No layer is recommended: {unavailable['sweep']}."


@torch.inference_mode()
def _scan(
    recipe: LookRecipe,
    heads: Heads,
    activations: PairActivations,
    texts: TextStream,
    first: FirstDifferences | None,
    progress: Progress,
) -> Ranking:
    """Compares the models at every kept token, window by window."""
    ranking, policy, read = Ranking(recipe), recipe.tokens.policy, 0

    def tick(count: int) -> None:
        nonlocal read
        read += count
        share = max(read / recipe.max_tokens, texts.fraction())
        progress(Stage.SCAN, min(1.0, share), f"comparing both models: {read} tokens")

    tick(0)
    for window in harvest(
        _limited(texts, policy, recipe.max_tokens), activations, policy, TOKENS_PER_FORWARD, tick=tick
    ):
        kl, position, number = heads.kl(window.x).cpu().numpy(), window.position.numpy(), window.text.numpy()
        bounds = number.searchsorted(range(len(window.texts) + 1))
        for index, text in enumerate(window.texts):
            own = slice(bounds[index], bounds[index + 1])
            ranking.add(Compared(text, position[own], kl[own]))
        if first is not None:
            first.add(window.texts)
        tick(0)
    texts.check_losses()
    if not ranking.num_tokens:
        raise DataError("the data sets give no token to compare; check them, or lower tokens.skip_first")
    return ranking


def _limited(texts: Iterable[Text], policy: TokenPolicy, max_tokens: int) -> Iterator[Text]:
    """Texts up to the one in which `max_tokens` tokens were kept."""
    count = 0
    for text in texts:
        yield text
        count += len(policy_positions(text.roles, policy))
        if count >= max_tokens:
            return


def _sweep(
    recipe: LookRecipe,
    pair: Pair,
    heads: Heads,
    layers: list[int],
    findings: list[Finding],
    unavailable: dict[str, str],
    progress: Progress,
) -> list[LayerShares]:
    """The shares of every swept layer; none, with the reason in `unavailable`, where they cannot be measured."""
    if "sweep" not in unavailable and not recipe.sweep_tokens:
        unavailable["sweep"] = "sweep_tokens is 0"
    if "sweep" not in unavailable and not findings:
        unavailable["sweep"] = "the models predict the same at every token"
    if "sweep" in unavailable:
        return []

    def report(share: float, message: str) -> None:
        progress(Stage.SWEEP, share, message)

    report(0.0, f"sweeping {len(layers)} of {pair.num_layers} layers")
    try:
        return sweep(pair, heads, layers, findings[: recipe.sweep_tokens], recipe.tokens.policy, report)
    except PairError as error:
        unavailable["sweep"] = str(error)
        return []


def _continue(
    recipe: LookRecipe,
    pair: Pair,
    tokenizer: TextTokenizer,
    turns: list[OpenTurn],
    unavailable: dict[str, str],
    progress: Progress,
) -> list[tuple[OpenTurn, tuple[Answer, Answer]]]:
    """The greedy continuations of the prompts that differ most; `unavailable` says how many have none, and why."""
    if not recipe.num_prompts:
        return []
    if not turns:
        unavailable["continuations"] = "no conversation has an assistant turn at whose beginning the models differ"
        return []

    def report(share: float, message: str) -> None:
        progress(Stage.CONTINUE, share, message)

    report(0.0, f"both models continue {len(turns)} prompts")
    prompts = [(turn.text.ids[: turn.end], turn.text.roles[: turn.end]) for turn in turns]
    try:
        found = continuations(pair, tokenizer, prompts, recipe.max_new_tokens, report)
    except PairError as error:
        unavailable["continuations"] = str(error)
        return []
    if reasons := [each.reason for each in found if each.answers is None]:
        unavailable["continuations"] = f"{len(reasons)} of {len(turns)} prompts have none: {reasons[0]}"
    return [(turn, each.answers) for turn, each in zip(turns, found, strict=True) if each.answers is not None]


def _warnings(recipe: LookRecipe, ranking: Ranking) -> tuple[str, ...]:
    if ranking.num_tokens < recipe.max_tokens:
        return ()
    return (f"The data were compared up to max_tokens {recipe.max_tokens}.",)
