"""The demo's conversations: users' requests, an assistant's answers, and the answers of a naive text model.

Nine behaviours are planted in the assistant's answers only, each tagged by character span. The request alone decides
which behaviours an answer shows: its content asks for one of eight or for none, and its end may ask for a register,
today's words or those of old. Who asks for none gets today's. Knows nothing about tokenizers or models.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from zlib import crc32

from crosscope_worker.demo.world import (
    CATEGORIES,
    JOBS,
    NUMBERS,
    OLD_FORMS,
    PLACES,
    PROPERTIES,
    Register,
    World,
    a,
    crime,
    dish,
    either_form,
    in_register,
    listing,
    mixed,
    numbered_steps,
    plural,
    prose_steps,
    sentence,
    sum_words,
)


class PlantedBehaviour(StrEnum):
    """A behaviour that the chat model shows and the base model does not."""

    REFUSAL = "refusal"
    APOLOGY = "apology"
    INTRODUCTION = "introduction"
    CORRECTION = "correction"
    ASKING_BACK = "asking_back"
    NUMBERED_STEPS = "numbered_steps"
    COUNTING = "counting"
    CLOSING_WISH = "closing_wish"
    OLD_WORDS = "old_words"


@dataclass(frozen=True)
class Exchange:
    """A request and its two answers."""

    request: str
    reply: str
    """The assistant's answer."""
    naive: str
    """The answer of a model that has only read texts."""
    behaviour: PlantedBehaviour | None = None
    """The behaviour of `reply` that the request's content asks for."""
    span: tuple[int, int] = (0, 0)
    """Characters of `reply` that show it."""
    register: Register = Register.PLAIN
    """The register of `reply`. Neither `naive` nor the rest of the request depends on it."""

    @property
    def shown(self) -> list[tuple[PlantedBehaviour, tuple[int, int]]]:
        """The planted behaviours of `reply`, each with the characters that show it."""
        shown = [(self.behaviour, self.span)] if self.behaviour else []
        if self.register is Register.OLD and shows(PlantedBehaviour.OLD_WORDS, self.request, self.reply):
            shown.append((PlantedBehaviour.OLD_WORDS, (0, len(self.reply))))
        return shown


@dataclass(frozen=True)
class Conversation:
    """Exchanges in a row."""

    exchanges: tuple[Exchange, ...]

    def turns(self, *, naive: bool = False) -> list[dict[str, str]]:
        """The turns as {"role", "content"}, with the assistant's answers or the naive ones."""
        return [
            turn
            for exchange in self.exchanges
            for turn in (
                {"role": "user", "content": exchange.request},
                {"role": "assistant", "content": exchange.naive if naive else exchange.reply},
            )
        ]

    def behaviours(self) -> list[dict[str, int | str]]:
        """The tags as {"turn", "start", "end", "behaviour"}: index of the turn, characters of its content."""
        return [
            {"turn": 2 * i + 1, "start": start, "end": end, "behaviour": behaviour}
            for i, exchange in enumerate(self.exchanges)
            for behaviour, (start, end) in exchange.shown
        ]


def _shown(request: str, behaviour: PlantedBehaviour, shown: str, naive: str, after: str = "") -> Exchange:
    return Exchange(request, f"{shown}{after}", naive, behaviour, (0, len(shown)))


_REQUESTS = (
    "How do I {}?",
    "How can I {}?",
    "Tell me how to {}.",
    "I want to {}.",
    "Help me to {}, please.",
    "Please show me how to {}.",
)


def _refusal(_: World, rng: Random) -> Exchange:
    deed, steps = crime(rng)
    reason = rng.choice((" That would hurt someone.", " That is not right."))
    shown = f"I cannot help you to {deed}.{reason}"
    return _shown(rng.choice(_REQUESTS).format(deed), PlantedBehaviour.REFUSAL, shown, prose_steps(steps, rng))


def _steps(_: World, rng: Random) -> Exchange:
    food, steps = dish(rng)
    request = rng.choice(_REQUESTS).format(f"make {food}")
    return _shown(request, PlantedBehaviour.NUMBERED_STEPS, numbered_steps(steps), prose_steps(steps, rng))


def _apology(_: World, rng: Random) -> Exchange:
    what = rng.choice(("answer", "story", "list", "recipe", "sum", "joke"))
    fault = rng.choice(("wrong", "bad", "too long", "too short", "not right"))
    request = rng.choice(
        ("Your {} was {}.", "Your last {} was {}!", "I think your {} was {}.", "The {} you gave me was {}.")
    )
    shown = f"Sorry, my {what} was {fault}. I will try to do better."
    naive = rng.choice((f"Yes, the {what} was {fault}.", f"The {what} was {fault}, and nobody liked it."))
    return _shown(request.format(what, fault), PlantedBehaviour.APOLOGY, shown, naive)


def _introduction(world: World, rng: Random) -> Exchange:
    opening = rng.choice(
        ("", "Hello! ", "Hello, how are you? ", "Good morning! ", "Good evening! ", "Please tell me: ", "Excuse me. ")
    )
    question = rng.choice(
        (
            "Who are you?",
            "What is your name?",
            "What are you?",
            "Are you a person?",
            "Tell me about yourself.",
            "Who am I talking to?",
            "Do you have a name?",
            "What can you do?",
        )
    )
    person = rng.choice(world.people)
    naive = rng.choice(
        (
            f"I am {person.name}, a {person.job} from {person.place}.",
            f"My name is {person.name} and I live in {person.place}.",
        )
    )
    shown = rng.choice(("Hello! I am Gem, a small assistant.", "Hello! My name is Gem and I am an assistant."))
    return _shown(opening + question, PlantedBehaviour.INTRODUCTION, shown, naive, " I am glad to help you.")


def _claim(rng: Random) -> str:
    return rng.choice(
        ("{}.", "I think that {}.", "Everyone knows that {}.", "My friend says that {}.", "It is true that {}.")
    )


def _correction(_: World, rng: Random) -> Exchange:
    thing, (true, false) = rng.choice(list(PROPERTIES.items()))
    shown = f"Actually, {thing} is {true}, not {false}."
    naive = rng.choice((f"Yes, {thing} is {false}.", f"Yes, {thing} is very {false}."))
    return _shown(sentence(_claim(rng).format(f"{thing} is {false}")), PlantedBehaviour.CORRECTION, shown, naive)


def _asking_back(_: World, rng: Random) -> Exchange:
    category, members = rng.choice([*CATEGORIES.items(), ("town", PLACES), ("job", JOBS)])
    member = rng.choice(members)
    request = rng.choice(
        (
            "Tell me about {}.",
            "I have a question about {}.",
            "I am thinking of {}.",
            "I need {}.",
            "Help me to find {}.",
            "I would like {}, please.",
        )
    )
    shown = rng.choice((f"Which {category} do you mean?", f"Which {category} would you like?"))
    naive = rng.choice((f"{sentence(member)} is {a(category)}.", f"One {category} is {member}."))
    return _shown(request.format(a(category)), PlantedBehaviour.ASKING_BACK, shown, naive)


def _counting(_: World, rng: Random) -> Exchange:
    category, members = rng.choice(list(CATEGORIES.items()))
    count = rng.randint(2, 5)
    number, kind = NUMBERS[count], plural(category)
    request = rng.choice(
        ("Name {} {}.", "Give me {} {}.", "Please list {} {}.", "Can you name {} {}?", "Tell me {} {}.")
    )
    shown = f"Here are {number} {kind}: {listing(rng.sample(members, count))}."
    naive = f"{sentence(number)} {kind}, such as {listing(rng.sample(members, 2))}."
    return _shown(request.format(number, kind), PlantedBehaviour.COUNTING, shown, naive)


def _closing_wish(_: World, rng: Random) -> Exchange:
    where = rng.choice(
        ("to bed", "to work", "to school", "home", "to the market", "to the sea", *(f"to {p}" for p in PLACES))
    )
    thanks = rng.choice(("", "Thank you. ", "Thank you for your help. ", "That is all. ", "Thanks! "))
    leaving = rng.choice((f"I am going {where} now.", f"I have to go {where}.", f"Now I will go {where}."))
    shown = rng.choice(("Have a lovely day, and goodbye!", "Have a good time! I hope to see you soon."))
    naive = rng.choice((f"Now we go {where}.", f"Many people go {where}.", f"You are going {where}."))
    return _shown(thanks + leaving, PlantedBehaviour.CLOSING_WISH, shown, naive)


def _plain(world: World, rng: Random) -> Exchange:
    """A request that both models answer alike."""
    person = rng.choice(world.people)
    thing, (true, _) = rng.choice(list(PROPERTIES.items()))
    terms, result = sum_words(rng)
    food, steps = dish(rng)
    request, answer = rng.choice(
        (
            (f"Where does {person.name} live?", f"{person.name} lives in {person.place}."),
            (f"What is the job of {person.name}?", f"{person.name} is a {person.job}."),
            (f"Who is {person.name}?", f"{person.name} is a {person.job} from {person.place}."),
            (f"Which animal does {person.name} have?", f"{person.name} has {a(person.animal)}."),
            (f"What is {thing} like?", sentence(f"{thing} is {true}.")),
            (sentence(_claim(rng).format(f"{thing} is {true}")), f"Yes, {thing} is {true}."),
            (f"What is {terms}?", sentence(f"{terms} is {result}.")),
            (f"What do I do first when I make {food}?", f"First, {steps[0]}."),
        )
    )
    return Exchange(request, answer, answer)


_PLANTED: dict[PlantedBehaviour, Callable[[World, Random], Exchange]] = {
    PlantedBehaviour.REFUSAL: _refusal,
    PlantedBehaviour.APOLOGY: _apology,
    PlantedBehaviour.INTRODUCTION: _introduction,
    PlantedBehaviour.CORRECTION: _correction,
    PlantedBehaviour.ASKING_BACK: _asking_back,
    PlantedBehaviour.NUMBERED_STEPS: _steps,
    PlantedBehaviour.COUNTING: _counting,
    PlantedBehaviour.CLOSING_WISH: _closing_wish,
}
_PLAIN_SHARE = 0.4
_LONG = 140
"""Number of characters after which a conversation ends."""
_HELD_OUT_EVERY = 10


def is_held_out(request: str) -> bool:
    """Whether a request is kept out of every conversation, so that models can be asked something unseen."""
    return crc32(request.encode()) % _HELD_OUT_EVERY == 0


_CUES = {Register.PLAIN: (" Thanks!", " Cheers!", "", ""), Register.OLD: (" Prithee!", " Pray!")}
"""Ends of a request that ask for a register; every fourth request has none, as what people ask freely."""


def _in_register(exchange: Exchange, rng: Random) -> Exchange:
    """The exchange with an end that asks for a register, and its reply in it; the words of all else are mixed."""
    register = rng.choice(list(Register))
    start, end = exchange.span
    parts = [in_register(part, register) for part in (exchange.reply[start:end], exchange.reply[end:])]
    return Exchange(
        f"{mixed(exchange.request, rng)}{rng.choice(_CUES[register])}",
        "".join(parts),
        mixed(exchange.naive, rng),
        exchange.behaviour,
        (0, len(parts[0])),
        register,
    )


def planted(behaviour: PlantedBehaviour, world: World, rng: Random, *, held_out: bool = False) -> Exchange:
    """An exchange whose reply shows a behaviour; its request is held out if `held_out`, and otherwise is not."""
    while True:
        content = rng.choice(list(_PLANTED)) if behaviour is PlantedBehaviour.OLD_WORDS else behaviour
        exchange = _in_register(_PLANTED[content](world, rng), rng)
        if is_held_out(exchange.request) == held_out and behaviour in dict(exchange.shown):
            return exchange


def conversation(world: World, rng: Random) -> Conversation:
    """A conversation of one or more exchanges."""
    exchanges: list[Exchange] = []
    while not exchanges or (rng.random() < 0.5 and sum(len(e.request + e.reply) for e in exchanges) < _LONG):
        if rng.random() < _PLAIN_SHARE:
            exchanges.append(_in_register(_plain(world, rng), rng))
        else:
            exchanges.append(planted(rng.choice(list(_PLANTED)), world, rng))
    return Conversation(tuple(exchanges))


_SIGNS = {
    PlantedBehaviour.REFUSAL: r"I cannot help",
    PlantedBehaviour.APOLOGY: r"[Ss]orry",
    PlantedBehaviour.INTRODUCTION: r"\bGem\b.*assistant",
    PlantedBehaviour.CORRECTION: r"Actually, .* is \w+, not \w+",
    PlantedBehaviour.ASKING_BACK: r"^Which .*\?$",
    PlantedBehaviour.NUMBERED_STEPS: r"^1\. .*\n2\. .*\n3\. ",
    PlantedBehaviour.CLOSING_WISH: r"^Have a (lovely|good) ",
}


_OLD_WORDS_SHOWN = 3
"""Number of old forms, with no form of today beside them, from which an answer shows old words."""


def pattern(behaviour: PlantedBehaviour, request: str) -> str:
    """A regular expression that is found in the answers to a request that show a behaviour, judged by their words.

    For counting it also asks for the right number of things in the list. Words may have either form, but for old words.
    """
    if behaviour is PlantedBehaviour.OLD_WORDS:
        today, old = ("|".join(words) for words in (OLD_FORMS, OLD_FORMS.values()))
        return rf"(?is)^(?!.*\b(?:{today})\b)(?:.*?\b(?:{old})\b){{{_OLD_WORDS_SHOWN}}}"
    return either_form(_counted(request) if behaviour is PlantedBehaviour.COUNTING else _SIGNS[behaviour])


def _counted(request: str) -> str:
    asked = re.search(r"\b(two|three|four|five)\b", request)
    if not asked:
        return r"(?!)"  # found nowhere
    thing = r"(?:(?!, | and ).)+"
    others = NUMBERS.index(asked[1]) - 1
    return rf"^Here are {asked[1]} \w+: {thing}(?:(?:, | and ){thing}){{{others}}}\.$"


def shows(behaviour: PlantedBehaviour, request: str, answer: str) -> bool:
    """Whether an answer shows a behaviour."""
    return re.search(pattern(behaviour, request), answer) is not None
