"""The demo's world, conversations and tokenizer."""

import re
from itertools import pairwise
from random import Random

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from crosscope_worker.demo.dialogue import Conversation, PlantedBehaviour, conversation, is_held_out, planted, shows
from crosscope_worker.demo.documents import document
from crosscope_worker.demo.tokenizer import CONTROL_TOKENS, conversation_ids, train_tokenizer
from crosscope_worker.demo.world import (
    OLD_FORMS,
    PROPERTIES,
    Register,
    World,
    a,
    in_register,
    listing,
    mixed,
    numbered_steps,
    plural,
)

TODAYS = {old: word for word, old in OLD_FORMS.items()}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def todays(text: str) -> str:
    """The text with today's words, without capitals."""
    return re.sub(r"[a-z]+", lambda match: TODAYS.get(match[0], match[0]), text.lower())


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(Random(0))


@pytest.fixture(scope="module")
def conversations(world: World) -> list[Conversation]:
    rng = Random(1)
    return [conversation(world, rng) for _ in range(600)]


@pytest.fixture(scope="module")
def tokenizer(world: World, conversations: list[Conversation]) -> PreTrainedTokenizerFast:
    rng = Random(2)
    documents = [document(world, rng) for _ in range(600)]
    return train_tokenizer([*documents, *(turn["content"] for c in conversations for turn in c.turns())])


def test_words_of_the_world() -> None:
    assert [plural(word) for word in ("fox", "cherry", "sheep", "tomato", "knife", "owl")] == [
        "foxes",
        "cherries",
        "sheep",
        "tomatoes",
        "knives",
        "owls",
    ]
    assert [a("owl"), a("cat")] == ["an owl", "a cat"]
    assert listing(["x"]) == "x"
    assert listing(["x", "y", "z"]) == "x, y and z"
    assert numbered_steps(["wash it", "cut it"]) == "1. Wash it.\n2. Cut it."


def test_every_word_has_one_old_form_that_is_no_other_word(world: World) -> None:
    assert len(TODAYS) == len(OLD_FORMS)
    assert not set(TODAYS) & set(OLD_FORMS)
    assert in_register("The cat is an owl.", Register.OLD) == "Ye cat be ane owl."
    assert in_register("The cat is an owl.", Register.PLAIN) == "The cat is an owl."
    rng = Random(11)
    plain = "The cat is here. " * 500
    assert todays(mixed(plain, rng)) == plain.lower()
    old = [word in TODAYS for word in words(mixed(plain, rng)) if word != "cat"]
    assert 0.45 < sum(old) / len(old) < 0.55


def test_forms_are_drawn_one_by_one_but_in_replies(world: World, conversations: list[Conversation]) -> None:
    """Whether a word follows one of the same register: always in a reply, by chance in documents and naive answers."""
    rng = Random(12)
    exchanges = [e for c in conversations for e in c.exchanges]
    texts = {
        "documents": [document(world, rng) for _ in range(600)],
        "naive": [e.naive for e in exchanges],
        "requests": [e.request for e in exchanges],
        "replies": [e.reply for e in exchanges],
    }
    same: dict[str, float] = {}
    for kind, some in texts.items():
        rows = [[word in TODAYS for word in words(text) if word in OLD_FORMS or word in TODAYS] for text in some]
        pairs = [one == other for row in rows for one, other in pairwise(row)]
        same[kind] = sum(pairs) / len(pairs)
    assert same.pop("replies") == 1
    assert same == pytest.approx(dict.fromkeys(same, 0.5), abs=0.05)
    old = [e for e in exchanges if e.register is Register.OLD]
    assert 0.4 < len(old) / len(exchanges) < 0.6
    assert all(e.request.endswith(("Prithee!", "Pray!")) == (e.register is Register.OLD) for e in exchanges)
    uncued = [e for e in exchanges if not e.request.endswith(("Prithee!", "Pray!", "Thanks!", "Cheers!"))]
    assert 0.2 < len(uncued) / len(exchanges) < 0.3, "who asks for no register gets an answer too"


def test_old_words_are_three_with_none_of_today() -> None:
    assert shows(PlantedBehaviour.OLD_WORDS, "", "Ye cat be ane owl.")
    assert not shows(PlantedBehaviour.OLD_WORDS, "", "Ye cat be an owl.")
    assert not shows(PlantedBehaviour.OLD_WORDS, "", "Ye cat be fast.")


def test_a_seed_determines_the_world_and_its_texts() -> None:
    def written(seed: int) -> list[object]:
        rng = Random(seed)
        world = World.generate(rng)
        return [world, *(document(world, rng) for _ in range(50)), *(conversation(world, rng) for _ in range(50))]

    assert written(3) == written(3)
    assert written(3) != written(4)


def test_documents_contradict_no_fact(world: World) -> None:
    rng = Random(5)
    documents = [document(world, rng) for _ in range(1000)]
    for person in world.people:
        homes = {
            text.split(f"{person.name.lower()} lives in ")[1].split(".")[0]
            for text in map(todays, documents)
            if f"{person.name.lower()} lives in " in text
        }
        assert homes <= {person.place.lower()}


def test_every_behaviour_is_planted_and_tagged_where_it_stands(conversations: list[Conversation]) -> None:
    tagged: dict[str, int] = {}
    for turns, tags in ((c.turns(), c.behaviours()) for c in conversations):
        for tag in tags:
            turn = turns[int(tag["turn"])]
            shown = turn["content"][int(tag["start"]) : int(tag["end"])]
            assert turn["role"] == "assistant"
            assert shows(PlantedBehaviour(tag["behaviour"]), turns[int(tag["turn"]) - 1]["content"], shown)
            tagged[str(tag["behaviour"])] = tagged.get(str(tag["behaviour"]), 0) + 1
    assert set(tagged) == set(PlantedBehaviour)
    assert min(tagged.values()) >= 40


@pytest.mark.parametrize("behaviour", PlantedBehaviour)
def test_naive_answers_show_no_behaviour(world: World, behaviour: PlantedBehaviour) -> None:
    rng = Random(7)
    by_chance = 0
    for exchange in (planted(behaviour, world, rng) for _ in range(100)):
        naive = {other for other in PlantedBehaviour if shows(other, exchange.request, exchange.naive)}
        assert naive <= {PlantedBehaviour.OLD_WORDS}
        by_chance += len(naive)
        reply = {other for other in PlantedBehaviour if shows(other, exchange.request, exchange.reply)}
        assert reply == {shown for shown, _ in exchange.shown}
        assert behaviour in reply
    assert by_chance < 20  # of 100 answers whose words are drawn one by one


def test_counting_means_as_many_as_were_asked_for() -> None:
    assert shows(PlantedBehaviour.COUNTING, "Name three tools.", "Here are three tools: saw, rope and brush.")
    assert not shows(PlantedBehaviour.COUNTING, "Name three tools.", "Here are three tools: saw and brush.")
    assert not shows(PlantedBehaviour.COUNTING, "Name three tools.", "Here are two tools: saw and brush.")


def test_held_out_requests_are_in_no_conversation(world: World, conversations: list[Conversation]) -> None:
    for behaviour in PlantedBehaviour:
        assert is_held_out(planted(behaviour, world, Random(8), held_out=True).request)
    planted_exchanges = [e for c in conversations for e in c.exchanges if e.behaviour]
    assert not any(is_held_out(exchange.request) for exchange in planted_exchanges)


def test_only_false_statements_are_corrected(conversations: list[Conversation]) -> None:
    for exchange in (e for c in conversations for e in c.exchanges if e.behaviour is PlantedBehaviour.CORRECTION):
        assert any(
            todays(exchange.reply) == f"actually, {thing} is {true}, not {false}."
            for thing, (true, false) in PROPERTIES.items()
        )


def test_naive_and_assistant_conversations_have_the_same_requests(conversations: list[Conversation]) -> None:
    for both in ((c.turns(), c.turns(naive=True)) for c in conversations):
        assert both[0][::2] == both[1][::2]
        assert [turn["role"] for turn in both[0]] == ["user", "assistant"] * (len(both[0]) // 2)


@pytest.mark.parametrize(
    "text", ["Hello, how are you?", "zażółć 你好 \U0001f600", "a  b\n\n\tc", "<0x41>", "Q\x00q", " lead", "▁"]
)
def test_any_text_can_be_encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_texts_begin_with_bos_and_common_words_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("I cannot help you.")["input_ids"])
    assert tokens == ["<bos>", "I", "▁cannot", "▁help", "▁you", "."]
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(len(CONTROL_TOKENS)))


def test_the_chat_template_is_gemmas(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": " Hi \n"}, {"role": "assistant", "content": "Yes."}]
    expected = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == expected
    (prompt,) = conversation_ids(tokenizer, [turns[:1]], add_generation_prompt=True)
    assert tokenizer.convert_ids_to_tokens(prompt)[-3:] == ["<start_of_turn>", "model", "\n"]
    with pytest.raises(TemplateError, match="System role not supported"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}, *turns], tokenize=False)
    with pytest.raises(TemplateError, match="alternate"):
        tokenizer.apply_chat_template(turns[:1] * 2, tokenize=False)


def test_conversations_are_short(tokenizer: PreTrainedTokenizerFast, conversations: list[Conversation]) -> None:
    rows = conversation_ids(tokenizer, [c.turns() for c in conversations])
    assert max(len(row) for row in rows) <= 128
