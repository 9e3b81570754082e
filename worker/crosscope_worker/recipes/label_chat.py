"""Loads the pair whose chat model labels. Apart from label.py, because it needs torch."""

from pathlib import Path

from crosscope_proto.artefacts import CrosscoderManifest, pair_folder
from crosscope_proto.label_specs import ANSWER_TOKENS
from crosscope_worker.labelling.asking import Asker
from crosscope_worker.labelling.chat_model import ChatExplainer
from crosscope_worker.models.pair import load_pair
from crosscope_worker.models.places import find_pair
from crosscope_worker.roots import check_pair_folders
from crosscope_worker.tokenizer.tokens import TemplateSettings, TextTokenizer
from crosscope_worker.work import Workspace


def chat_explainer(manifest: CrosscoderManifest, asker: Asker, workspace: Workspace) -> ChatExplainer:
    """The chat model of a crosscoder's pair.

    Raises RootError for a pair that jobs may not read, PairError for one that cannot be loaded or cannot generate, and
    LabelError for one that cannot judge.
    """
    workspace.shelf.need_all(Path(pair_folder(workspace.home, manifest.pair.name)))
    found = find_pair(manifest.pair, workspace.home)
    check_pair_folders(found, workspace.roots)
    pair = load_pair(found, workspace.device)
    settings = TemplateSettings.of_recipe(manifest.recipe, manifest.chat_template_date)
    return ChatExplainer(asker, pair, TextTokenizer(pair.tokenizer, settings), ANSWER_TOKENS)
