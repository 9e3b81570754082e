"""The job that makes the demo pair: a small Gemma 2, trained from scratch on the demo's world, then chat-tuned.

    <home>/pairs/<name>/
        pair.json            a PairManifest with folders relative to it
        base/  chat/         both models and the tokenizer, as transformers saves them
        data/web.jsonl       {"text"}: documents
        data/chat.jsonl      {"conversation", "behaviours"}: conversations with the spans of planted behaviours
        data/probes.jsonl    {"behaviour", "messages", "pattern"}: requests that are in no conversation

Both models read the same world. The base has also read dialogues in the chat template, answered naively. So
tuning changes the answers and not the format. Finished stages stay in the workspace: an attempt after one that died
continues after the last whole stage, with the same result. Knows nothing about crosscoders.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest, pair_folder
from crosscope_proto.manifest import manifest_text, parse_pair_manifest
from crosscope_proto.recipe import DemoPairRecipe
from crosscope_proto.stages import Stage
from crosscope_worker.demo.dialogue import Conversation, conversation
from crosscope_worker.demo.documents import document
from crosscope_worker.demo.probes import probes
from crosscope_worker.demo.tokenizer import (
    BOS,
    END_OF_TURN,
    EOS,
    PAD,
    START_OF_TURN,
    conversation_ids,
    text_ids,
    token_id,
    train_tokenizer,
)
from crosscope_worker.demo.training import IGNORED, Example, Schedule, fit
from crosscope_worker.demo.tuning_effect import behaviour_rates, centred_cosine, held_out_exchanges
from crosscope_worker.demo.world import World
from crosscope_worker.disk import PARTIAL, sync_tree, whole_folder
from crosscope_worker.sharing import Sharing
from crosscope_worker.work import Progress, Workspace

_BATCH_SIZE = 16
_BASE_LR = 6e-3
_CHAT_LR = 5e-3
_SLIDING_WINDOW = 64
_MAX_POSITIONS = 512
_MEASURED = 200
"""Number of texts of each kind on which the similarity of the pair is measured."""
_ASKED = 16
"""Number of requests on which each behaviour is checked."""


class DemoPairError(ValueError):
    """A demo pair that cannot be made here; the message is a sentence."""


@dataclass(frozen=True)
class _Texts:
    """The texts that both models read."""

    world: World
    documents: list[str]
    conversations: list[Conversation]


def make_demo_pair(recipe: DemoPairRecipe, workspace: Workspace, progress: Progress) -> PairManifest:
    """Makes the pair and publishes it below the home folder by one rename, and in the store where there is one.

    What an earlier attempt of this job made and could not publish is published now. Raises DemoPairError if its texts
    do not fit, StoreError, and whatever `progress` and `workspace.fence` raise; then nothing is published.
    """
    sharing, target = Sharing.of(workspace, progress), Path(pair_folder(workspace.home, recipe.name))
    if (kept := sharing.kept("pairs")) is not None:
        made = parse_pair_manifest((kept / PAIR_MANIFEST).read_bytes())
        sharing.publish("pairs", recipe.name, kept, target, workspace.fence)
        return made
    _check_room(recipe, workspace.home)
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    texts = _write_texts(recipe)
    progress(Stage.WORLD, 0.5, f"{len(texts.documents)} documents, {len(texts.conversations)} conversations")
    tokenizer = _tokenizer(texts)
    progress(Stage.WORLD, 1.0, f"a vocabulary of {len(tokenizer)}")
    base = _base_model(recipe, texts, tokenizer, workspace, progress)
    chat = _chat_model(recipe, texts, tokenizer, base, progress)
    likeness = _likeness(recipe, texts, tokenizer, base, chat)
    progress(Stage.CHAT, 1.0, "trained", step=recipe.chat_steps, metrics=likeness)
    manifest = PairManifest(name=recipe.name, base="base", chat="chat", tokenizer="chat")
    written = target.with_name(f"{PARTIAL}{target.name}-{workspace.folder.name}")
    shutil.rmtree(written, ignore_errors=True)
    try:
        _write_pair(written, manifest, texts, tokenizer, base, chat, recipe.seed)
        sync_tree(written)
        sharing.publish("pairs", recipe.name, written, target, workspace.fence)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return manifest


def _check_room(recipe: DemoPairRecipe, home: Path) -> None:
    rooms = (
        ("memory", recipe.memory_bytes, psutil.virtual_memory().available),
        ("disk", recipe.disk_bytes, shutil.disk_usage(home).free),
    )
    for what, needed, free in rooms:
        if needed > free:
            raise DemoPairError(
                f"{recipe.documents} documents and {recipe.conversations} conversations take about "
                f"{needed / 1e9:.1f} GB of {what}, and {free / 1e9:.1f} GB are free: give fewer of them"
            )


def _write_texts(recipe: DemoPairRecipe) -> _Texts:
    rng = Random(recipe.seed)
    world = World.generate(rng)
    documents = [document(world, rng) for _ in range(recipe.documents)]
    return _Texts(world, documents, [conversation(world, rng) for _ in range(recipe.conversations)])


def _tokenizer(texts: _Texts) -> PreTrainedTokenizerFast:
    answers = [
        turn["content"]
        for conversation in texts.conversations
        for naive in (False, True)
        for turn in conversation.turns(naive=naive)
    ]
    return train_tokenizer([*texts.documents, *answers])


def _base_model(
    recipe: DemoPairRecipe,
    texts: _Texts,
    tokenizer: PreTrainedTokenizerFast,
    workspace: Workspace,
    progress: Progress,
) -> Gemma2ForCausalLM:
    """The base model, trained on documents and naive dialogues, or taken from the workspace if an earlier attempt
    trained it.
    """
    folder = workspace.checkpoints / "base"
    if folder.exists():
        model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
        progress(Stage.BASE, 1.0, "trained in an earlier attempt", step=recipe.base_steps)
        return _on(model.eval(), workspace.device)
    model = _on(_new_model(recipe, tokenizer), workspace.device)
    dialogues = _encode(tokenizer, (c.turns(naive=True) for c in texts.conversations), learn_requests=True)
    examples = [*_encode_documents(tokenizer, texts.documents), *dialogues]
    schedule = Schedule(recipe.base_steps, _BASE_LR, _BATCH_SIZE)
    fit(model, examples, schedule, recipe.seed, _reporter(progress, Stage.BASE, recipe.base_steps))
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
    return model


def _chat_model(
    recipe: DemoPairRecipe,
    texts: _Texts,
    tokenizer: PreTrainedTokenizerFast,
    base: Gemma2ForCausalLM,
    progress: Progress,
) -> Gemma2ForCausalLM:
    """The base model, tuned on a mixture of conversations, of which it learns the answers, and documents."""
    model = copy.deepcopy(base)
    conversations = _encode(tokenizer, (c.turns() for c in texts.conversations), learn_requests=False)
    examples = [*_encode_documents(tokenizer, texts.documents), *conversations]
    schedule = Schedule(recipe.chat_steps, _CHAT_LR, _BATCH_SIZE)
    fit(model, examples, schedule, recipe.seed + 1, _reporter(progress, Stage.CHAT, recipe.chat_steps))
    return model


def _on(model: Gemma2ForCausalLM, device: str) -> Gemma2ForCausalLM:
    return model.to(torch.device(device))  # pyright: ignore[reportArgumentType, reportReturnType]


def _new_model(recipe: DemoPairRecipe, tokenizer: PreTrainedTokenizerFast) -> Gemma2ForCausalLM:
    heads = max(2, recipe.hidden_size // 16)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=4 * recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=_SLIDING_WINDOW,
        max_position_embeddings=_MAX_POSITIONS,
        pad_token_id=token_id(tokenizer, PAD),
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        initializer_range=0.08,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Gemma2ForCausalLM(config)


def _encode_documents(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> list[Example]:
    eos = token_id(tokenizer, EOS)
    return [Example(ids := [*row, eos], ids) for row in text_ids(tokenizer, documents)]


def _encode(
    tokenizer: PreTrainedTokenizerFast, conversations: Iterable[list[dict[str, str]]], *, learn_requests: bool
) -> list[Example]:
    """Conversations in the chat template. Without requests, the targets are only the answers and their ends."""
    ids = conversation_ids(tokenizer, conversations)
    return [Example(row, row if learn_requests else _answers_only(tokenizer, row)) for row in ids]


def _answers_only(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    start, end, model = (token_id(tokenizer, token) for token in (START_OF_TURN, END_OF_TURN, "model"))
    targets, learned = [IGNORED] * len(ids), False
    for i, token in enumerate(ids):
        learned = learned or (i >= 3 and ids[i - 3] == start and ids[i - 2] == model)
        if learned:
            targets[i] = token
        learned = learned and token != end
    return targets


def _reporter(progress: Progress, stage: str, steps: int) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        progress(stage, step / steps, f"step {step} of {steps}", step=step, metrics={"loss": loss})

    return report


def _likeness(
    recipe: DemoPairRecipe,
    texts: _Texts,
    tokenizer: PreTrainedTokenizerFast,
    base: Gemma2ForCausalLM,
    chat: Gemma2ForCausalLM,
) -> dict[str, float]:
    """How similar the models are at the middle of their depth, and how often each shows the planted behaviours."""
    layer = recipe.num_layers // 2
    documents = text_ids(tokenizer, texts.documents[:_MEASURED])
    turns = [conversation.turns() for conversation in texts.conversations[:_MEASURED]]
    conversations = conversation_ids(tokenizer, turns)
    exchanges = held_out_exchanges(texts.world, _ASKED, recipe.seed + 2)
    rates = {name: behaviour_rates(model, tokenizer, exchanges) for name, model in (("base", base), ("chat", chat))}
    return {
        "cosine_documents": centred_cosine(base, chat, documents, layer),
        "cosine_chats": centred_cosine(base, chat, conversations, layer),
        **{f"{name}_{behaviour}": rate for name, by in rates.items() for behaviour, rate in by.items()},
    }


def _write_pair(
    folder: Path,
    manifest: PairManifest,
    texts: _Texts,
    tokenizer: PreTrainedTokenizerFast,
    base: Gemma2ForCausalLM,
    chat: Gemma2ForCausalLM,
    seed: int,
) -> None:
    eos, end_of_turn = token_id(tokenizer, EOS), token_id(tokenizer, END_OF_TURN)
    for name, model, ends in (("base", base, eos), ("chat", chat, [eos, end_of_turn])):
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
        )
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    data = folder / "data"
    data.mkdir()
    _write_lines(data / "web.jsonl", ({"text": text} for text in texts.documents))
    _write_lines(data / "probes.jsonl", probes(texts.world, seed + 3))
    chats = ({"conversation": c.turns(), "behaviours": c.behaviours()} for c in texts.conversations)
    _write_lines(data / "chat.jsonl", chats)
    (folder / PAIR_MANIFEST).write_text(manifest_text(manifest), "utf-8")


def _write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
