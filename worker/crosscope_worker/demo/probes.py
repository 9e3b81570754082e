"""The demo's probes: requests that are in no conversation, each with a pattern of the answers that show its behaviour.

Knows nothing about models.
"""

from collections.abc import Iterator
from random import Random

from crosscope_worker.demo.dialogue import PlantedBehaviour, pattern, planted
from crosscope_worker.demo.world import World

_DRAWN = 40
"""Requests that are drawn for each behaviour; equal ones are kept once."""
_DRAWN_GREETED = 16
"""The same of an introduction, of which fewer are equal."""
_GREETINGS = ("Good day! ", "Hello again! ", "Dear assistant, ", "One question: ")
"""Beginnings that no conversation has."""


def probes(world: World, seed: int) -> Iterator[dict[str, object]]:
    """Rows of probes.jsonl: {"behaviour", "messages", "pattern"}.

    There are few ways to ask who somebody is, so an introduction is asked for with a further greeting in front.
    """
    rng = Random(seed)
    for behaviour in PlantedBehaviour:
        greets = behaviour is PlantedBehaviour.INTRODUCTION
        num = _DRAWN_GREETED if greets else _DRAWN
        drawn = [planted(behaviour, world, rng, held_out=not greets).request for _ in range(num)]
        for request in dict.fromkeys(f"{rng.choice(_GREETINGS)}{each}" if greets else each for each in drawn):
            messages = [{"role": "user", "content": request}]
            yield {"behaviour": str(behaviour), "messages": messages, "pattern": pattern(behaviour, request)}
