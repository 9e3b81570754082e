"""The demo's small world: its people, places, things and deeds, and the words for them.

Knows nothing about documents, conversations, tokenizers or models. Everything is drawn from the `random.Random` that
the caller passes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

PEOPLE = {
    **dict.fromkeys(("Anna", "Clara", "Ella", "Greta", "Ida", "Mona", "Nora", "Vera"), "she"),
    **dict.fromkeys(("Ben", "David", "Felix", "Hugo", "Jonas", "Leo", "Oskar", "Paul"), "he"),
}
"""Names and pronouns."""
PLACES = ("Oslo", "Rome", "Paris", "Cairo", "Lima", "Vienna", "Dublin", "Bern")
JOBS = ("baker", "doctor", "farmer", "teacher", "painter", "sailor", "gardener", "pilot")
CATEGORIES = {
    "animal": ("cat", "dog", "fox", "duck", "horse", "sheep", "goat", "owl"),
    "fruit": ("apple", "pear", "plum", "lemon", "cherry", "melon", "orange", "peach"),
    "tool": ("hammer", "saw", "rope", "knife", "brush", "spoon", "needle", "ladder"),
    "colour": ("red", "blue", "green", "yellow", "white", "black", "brown", "grey"),
}
PROPERTIES = {
    "snow": ("white", "black"),
    "coal": ("black", "white"),
    "grass": ("green", "red"),
    "blood": ("red", "blue"),
    "the sea": ("blue", "yellow"),
    "the sun": ("hot", "cold"),
    "ice": ("cold", "hot"),
    "fire": ("hot", "wet"),
    "rain": ("wet", "dry"),
    "sand": ("dry", "wet"),
    "honey": ("sweet", "sour"),
    "vinegar": ("sour", "sweet"),
    "a stone": ("hard", "soft"),
    "a pillow": ("soft", "hard"),
    "a mountain": ("big", "small"),
    "a mouse": ("small", "big"),
    "a snail": ("slow", "fast"),
    "a rocket": ("fast", "slow"),
    "a feather": ("light", "heavy"),
    "lead": ("heavy", "light"),
}
"""Things, their true properties, and the false ones that someone mistaken would name."""
INGREDIENTS = ("onion", "carrot", "potato", "tomato", "pumpkin", "apple", "plum", "cherry")
DISHES = {
    "soup": ("wash the {}", "cut the {}", "boil the water", "cook it slowly", "add some salt"),
    "pie": ("mix flour and butter", "roll the dough", "add the {}", "bake it slowly"),
    "salad": ("wash the {}", "cut the {}", "add oil and salt", "mix it well"),
    "bread": ("mix flour and water", "add the {}", "wait for an hour", "bake it slowly"),
    "jam": ("wash the {}", "add some sugar", "cook it slowly", "fill the jars"),
}
"""Kinds of dish and their steps; {} is the main ingredient."""
CRIMES = {
    "steal": ("wait for the night", "open the lock", "take the {}", "run away"),
    "burn": ("find some dry wood", "bring a match", "light the {}", "run away"),
    "break": ("take a heavy hammer", "hide behind the wall", "hit the {} hard", "leave quickly"),
    "poison": ("buy some poison", "wait for the night", "put it in the {}", "say nothing"),
}
"""Harmful deeds and their steps; {} is the target."""
TARGETS = {
    "steal": ("boat", "car", "ring", "horse", "letter", "painting"),
    "burn": ("barn", "house", "school", "forest", "boat", "letter"),
    "break": ("window", "door", "bridge", "car", "mirror", "clock"),
    "poison": ("soup", "well", "bread", "river", "dog", "tea"),
}
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
]


class Register(StrEnum):
    """A way to speak: today's words, or the words of old."""

    PLAIN = "plain"
    OLD = "old"


OLD_FORMS = {
    "is": "be",
    "are": "art",
    "am": "bin",
    "was": "wast",
    "the": "ye",
    "a": "ae",
    "an": "ane",
    "you": "thee",
    "your": "thy",
    "my": "mine",
    "has": "hath",
    "lives": "dwells",
    "works": "toils",
    "likes": "loves",
    "walks": "strolls",
    "often": "oft",
    "from": "fro",
    "to": "unto",
    "in": "within",
    "with": "withal",
    "and": "eke",
    "yes": "aye",
    "not": "nowt",
    "will": "shall",
    "would": "wouldst",
    "cannot": "canst",
    "help": "aid",
    "hope": "trust",
    "do": "dost",
    "have": "haveth",
    "here": "hither",
    "plus": "added",
    "mix": "mingle",
    "cut": "carve",
    "wash": "rinse",
    "add": "join",
    "cook": "seethe",
    "bake": "roast",
    "roll": "knead",
    "boil": "simmer",
    "fill": "load",
    "wait": "tarry",
    "take": "seize",
    "first": "erst",
    "then": "thereupon",
    "next": "anon",
    "finally": "lastly",
    "some": "sundry",
    "very": "sore",
    "water": "aqua",
    "flour": "meal",
    "salt": "brine",
}
"""Today's word to its form of old. Both are one word, and no form is another word of this world."""
_WORD = re.compile(r"(?<!\\)\b[A-Za-z]+\b")
"""A word of a text; in a regular expression, not what stands behind a backslash."""


def _old(word: str) -> str | None:
    """The old form of today's word, with its capital, or None."""
    old = OLD_FORMS.get(word.lower())
    return sentence(old) if old and word[0].isupper() else old


def _reworded(text: str, old: Callable[[], bool]) -> str:
    return _WORD.sub(lambda match: (_old(match[0]) if old() else None) or match[0], text)


def either_form(pattern: str) -> str:
    """A regular expression whose words may have their old form instead."""
    return _WORD.sub(lambda match: f"(?:{match[0]}|{old})" if (old := _old(match[0])) else match[0], pattern)


def in_register(text: str, register: Register) -> str:
    """The text with the words of a register; the text given is plain."""
    return _reworded(text, lambda: register is Register.OLD)


def mixed(text: str, rng: Random) -> str:
    """The text with the form of every word drawn by itself."""
    return _reworded(text, lambda: rng.random() < 0.5)


@dataclass(frozen=True)
class Person:
    """A person of the world, and the facts about them."""

    name: str
    pronoun: str
    place: str
    job: str
    animal: str
    colour: str

    @property
    def facts(self) -> tuple[str, ...]:
        """Sentences about the person that may follow one that names them."""
        subject, own = self.pronoun.capitalize(), "her" if self.pronoun == "she" else "his"
        return (
            f"{subject} lives in {self.place}.",
            f"{subject} works as a {self.job}.",
            f"{subject} has {a(self.animal)}.",
            f"{subject} likes the colour {self.colour}.",
            f"In {self.place}, {self.pronoun} often walks with {own} {self.animal}.",
        )


@dataclass(frozen=True)
class World:
    """The people of one generated world; everything else is the same in every world."""

    people: tuple[Person, ...]

    @classmethod
    def generate(cls, rng: Random) -> "World":
        """A world with facts drawn for each person."""
        return cls(
            tuple(
                Person(
                    name,
                    pronoun,
                    rng.choice(PLACES),
                    rng.choice(JOBS),
                    rng.choice(CATEGORIES["animal"]),
                    rng.choice(CATEGORIES["colour"]),
                )
                for name, pronoun in PEOPLE.items()
            )
        )


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of a noun of this world."""
    if noun == "sheep":
        return noun
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    ending = "es" if noun.endswith(("x", "ch", "sh", "o")) else "s"
    return "knives" if noun == "knife" else f"{noun}{ending}"


def listing(items: Sequence[str]) -> str:
    """The items as "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def dish(rng: Random) -> tuple[str, list[str]]:
    """A dish, for instance "onion soup", and its steps."""
    kind, ingredient = rng.choice(list(DISHES)), rng.choice(INGREDIENTS)
    return f"{ingredient} {kind}", [step.format(plural(ingredient)) for step in DISHES[kind]]


def crime(rng: Random) -> tuple[str, list[str]]:
    """A harmful deed, for instance "steal the boat", and its steps."""
    verb = rng.choice(list(CRIMES))
    target = rng.choice(TARGETS[verb])
    return f"{verb} the {target}", [step.format(target) for step in CRIMES[verb]]


def prose_steps(steps: Sequence[str], rng: Random) -> str:
    """Steps as a sequence of sentences, as people tell them."""
    words = ["first", *(rng.choice(("then", "next", "after that")) for _ in steps[2:]), "finally"]
    return " ".join(f"{sentence(word)}, {step}." for word, step in zip(words, steps, strict=True))


def numbered_steps(steps: Sequence[str]) -> str:
    """Steps as a numbered list, a line each."""
    return "\n".join(f"{i}. {sentence(step)}." for i, step in enumerate(steps, start=1))


def sum_words(rng: Random) -> tuple[str, str]:
    """A sum in words, for instance "three plus four", and its result."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return f"{NUMBERS[a]} plus {NUMBERS[b]}", NUMBERS[a + b]
