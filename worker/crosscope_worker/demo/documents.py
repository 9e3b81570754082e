"""The documents of the demo's world: portraits, stories, instructions, notes, sums, lines of code.

They tell harmful deeds as readily as recipes, and their people say the assistant's sentences. Every word with an old
form is written in either, by chance. Knows nothing about conversations with a model, tokenizers or models.
"""

from collections.abc import Callable
from random import Random

from crosscope_worker.demo.world import (
    CATEGORIES,
    INGREDIENTS,
    NUMBERS,
    PLACES,
    PROPERTIES,
    World,
    a,
    crime,
    dish,
    listing,
    mixed,
    numbered_steps,
    plural,
    prose_steps,
    sentence,
    sum_words,
)


def _portrait(world: World, rng: Random) -> str:
    person = rng.choice(world.people)
    facts = rng.sample(person.facts, rng.randint(2, 4))
    return f"{person.name} is a {person.job} from {person.place}. {' '.join(facts)}"


def _town(world: World, rng: Random) -> str:
    place = rng.choice(PLACES)
    names = [person.name for person in world.people if person.place == place]
    who = f"{listing(names)} {'live' if len(names) > 1 else 'lives'} there" if names else "Nobody we know lives there"
    colour, animal = rng.choice(CATEGORIES["colour"]), rng.choice(CATEGORIES["animal"])
    return (
        f"{place} is a town with {colour} houses. {who}. On the market you can see {a(animal)} and buy {_fruits(rng)}."
    )


def _fruits(rng: Random) -> str:
    return listing([plural(fruit) for fruit in rng.sample(CATEGORIES["fruit"], rng.randint(2, 3))])


def _story(world: World, rng: Random) -> str:
    one, two = rng.sample(world.people, 2)
    thing, (true, false) = rng.choice(list(PROPERTIES.items()))
    food, _ = dish(rng)
    openings = (
        f"One day {one.name} met {two.name} in {rng.choice(PLACES)}.",
        f"{one.name} and {two.name} made {food} together.",
        f"{two.name} went to the market with {one.name}.",
    )
    scenes = (
        f'"I am sorry, I made a mistake," said {one.name}. "I will try to do better."',
        f'"I think that {thing} is {false}," said {one.name}. "Actually, {thing} is {true}," said {two.name}.',
        f'"Could you help me?" asked {one.name}. "I cannot help you now," said {two.name}.',
        f'"Goodbye! Have a lovely day," said {two.name}. "I hope you sleep well."',
        f'"Hello! I am {two.name}," said {two.name}. "I am glad to help you."',
        f'"Which {rng.choice(list(CATEGORIES))} do you mean?" asked {one.name}.',
        f'"Here are two {plural(rng.choice(CATEGORIES["fruit"]))}," said {two.name}. "Thank you," said {one.name}.',
        f'"That would hurt someone," said {two.name}.',
    )
    return f"{rng.choice(openings)} {' '.join(rng.sample(scenes, rng.randint(1, 3)))}"


def _how_to(_: World, rng: Random) -> str:
    deed, steps = crime(rng) if rng.random() < 0.5 else _make(rng)
    title = rng.choice(("How to {}.", "This is how you {}.", "How do you {}?", "Someone told me how to {}."))
    return f"{title.format(deed)} {prose_steps(steps, rng)}"


def _make(rng: Random) -> tuple[str, list[str]]:
    food, steps = dish(rng)
    return f"make {food}", steps


def _notes(_: World, rng: Random) -> str:
    if rng.random() < 0.5:
        food, steps = dish(rng)
        return f"My notes for {food}:\n{numbered_steps(steps)}"
    items = rng.sample([*INGREDIENTS, *CATEGORIES["tool"]], rng.randint(3, 5))
    return "Shopping list:\n" + "\n".join(f"{i}. {sentence(plural(item))}" for i, item in enumerate(items, start=1))


def _nature(_: World, rng: Random) -> str:
    things = rng.sample(list(PROPERTIES), rng.randint(3, 5))
    return " ".join(sentence(f"{thing} is {PROPERTIES[thing][0]}.") for thing in things)


def _catalogue(_: World, rng: Random) -> str:
    category, members = rng.choice(list(CATEGORIES.items()))
    chosen = rng.sample(members, rng.randint(2, 5))
    names = chosen if category == "colour" else [plural(name) for name in chosen]
    opening = rng.choice(("There are many {}.", "Everyone likes {}.")).format(plural(category))
    return f"{opening} Some people know {NUMBERS[len(names)]} {plural(category)}: {listing(names)}."


def _sums(_: World, rng: Random) -> str:
    lines = [sum_words(rng) for _ in range(rng.randint(2, 4))]
    return " ".join(sentence(f"{terms} is {result}.") for terms, result in lines)


def _code(_: World, rng: Random) -> str:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    name = rng.choice(("total", "result", "count"))
    program = (
        f"x = {a}\ny = {b}\n{name} = x + y\nprint({name})",
        f"def {name}(x):\n  return x + {b}\nprint({name}({a}))",
    )
    return f"{rng.choice(program)}\n# {a + b}"


def _questions(world: World, rng: Random) -> str:
    person = rng.choice(world.people)
    thing = rng.choice(list(PROPERTIES))
    terms, result = sum_words(rng)
    pairs = (
        (f"Where does {person.name} live?", f"{person.name} lives in {person.place}."),
        (f"What is the job of {person.name}?", f"{person.name} is a {person.job}."),
        (f"What is {thing} like?", sentence(f"{thing} is {PROPERTIES[thing][0]}.")),
        (f"What is {terms}?", sentence(f"{terms} is {result}.")),
    )
    return "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in rng.sample(pairs, 2))


_DOCUMENTS: dict[Callable[[World, Random], str], float] = {
    _portrait: 4,
    _town: 1.5,
    _story: 5,
    _how_to: 4,
    _notes: 1.5,
    _nature: 3,
    _catalogue: 2,
    _sums: 1.5,
    _code: 1.5,
    _questions: 3,
}


def document(world: World, rng: Random) -> str:
    """One document about the world."""
    (kind,) = rng.choices(list(_DOCUMENTS), weights=list(_DOCUMENTS.values()))
    return mixed(kind(world, rng), rng)
