"""Calls about behaviours: which latents carry one, and how often models show it with and without them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from random import Random

from crosscope._arms import Arm
from crosscope._async.attributing import AsyncAttributing
from crosscope._async.generation import AsyncGeneration
from crosscope._behaviours import (
    ArmsByBehaviour,
    BehaviourLatents,
    BehaviourRates,
    Probe,
    Rate,
    arms_for,
    by_behaviour,
    halves,
    nearest_at_random,
)
from crosscope._errors import InvalidInput
from crosscope._prompts import check_count
from crosscope._steering import MODELS, Steer

_FIRST_TOKENS = 9
"""Predictions of an answer that latents are chosen by."""
_AT_ONCE = 8
"""Generations that are under way together, so that the worker can batch them."""
_OWN_ENDS = ("turn_end", "stop")
_MOST_LISTED = 1000


class AsyncBehaviours(AsyncAttributing):
    """How often models show behaviours, and which latents carry them."""

    async def behaviour_rates(
        self, probes: Iterable[Probe], arms: ArmsByBehaviour | None = None, max_new_tokens: int = 64
    ) -> BehaviourRates:
        """How often each arm shows each behaviour: the share of greedy answers in which the probe's pattern is found.

        `arms` by name, by default "chat" and "base"; instead of an Arm, a mapping from behaviour to Arm. Equal requests
        of a behaviour count once.
        """
        arms = {"chat": Arm(model="chat"), "base": Arm(model="base")} if arms is None else arms
        asked = [
            (probe, arms_for(behaviour, arms)) for behaviour, each in by_behaviour(probes).items() for probe in each
        ]
        shown: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        num_cut, version_id = 0, ""
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            under_way: list[AsyncGeneration] = []
            for probe, own in some:
                generation = await self.generate(
                    messages=probe.messages, arms=list(own.values()), max_new_tokens=max_new_tokens
                )
                under_way.append(generation)
            for (probe, own), generation in zip(some, under_way, strict=True):
                answers, version_id = await generation.answers, generation.version_id
                num_cut += sum(answer.reason not in _OWN_ENDS for answer in answers)
                for name, answer in zip(own, answers, strict=True):
                    shown[probe.behaviour][name].append(probe.is_shown_by(answer.text))
        rates = {
            behaviour: {name: Rate(sum(found), len(found)) for name, found in each.items()}
            for behaviour, each in shown.items()
        }
        return BehaviourRates(self.name, version_id, rates, num_cut)

    async def behaviour_latents(
        self, probes: Iterable[Probe], num_latents: int = 16, seed: int = 0
    ) -> dict[str, BehaviourLatents]:
        """The latents that carry each behaviour, by what they do on the probes' requests.

        The chat model answers each request. Attribute explains KL(chat ‖ base) added up over the first nine predictions
        of that answer: by ablation in chat, and by transplant into base. A latent's effect is the mean of both shares,
        over all requests; the `num_latents` with the largest positive effects are chosen. Give other requests here than
        those that are scored afterwards.
        """
        check_count(num_latents, "num_latents", low=1)
        draw = Random(seed)
        return {
            behaviour: await self._carriers(behaviour, each, num_latents, draw)
            for behaviour, each in by_behaviour(probes).items()
        }

    async def _carriers(
        self, behaviour: str, probes: Sequence[Probe], num_latents: int, draw: Random
    ) -> BehaviourLatents:
        effects: dict[int, float] = defaultdict(float)
        strengths: dict[int, float] = defaultdict(float)
        for probe in probes:
            generation = await self.generate(messages=probe.messages, max_new_tokens=_FIRST_TOKENS)
            answer = (await generation.answers)[0]
            num_before = len(generation.prompt)
            ids = [*generation.prompt.ids, *answer.tokens.ids]
            explained = range(num_before - 1, len(ids) - 1)
            for model in MODELS:
                attribution = await self.attribute(
                    token_ids=ids, tokens=list(explained), model=model, limit=_MOST_LISTED
                )
                for entry in attribution:
                    strengths[entry.latent] += entry.max / (2 * len(probes))
                    effects[entry.latent] += (entry.share or 0.0) / (2 * len(probes))
        chosen = sorted((each for each in effects if effects[each] > 0), key=lambda each: -effects[each])[:num_latents]
        if not chosen:
            raise InvalidInput.of("probes", f"no latent has an effect on the {len(probes)} requests of {behaviour!r}")
        others = {latent: strength for latent, strength in strengths.items() if latent not in chosen}
        control = nearest_at_random([strengths[each] for each in chosen], others, draw)
        return BehaviourLatents(
            behaviour, tuple(chosen), tuple(effects[each] for each in chosen), tuple(control), len(probes)
        )

    async def behaviour_effects(
        self, probes: Iterable[Probe], num_latents: int = 16, max_new_tokens: int = 64, seed: int = 0
    ) -> BehaviourRates:
        """How often each behaviour is shown with and without the latents that carry it.

        `behaviour_latents` chooses on every second request of a behaviour; the others are scored, in the arms chat,
        base, chat with the latents ablated, base with them transplanted, chat with the control ablated, and base with
        the whole stream of chat at this layer, which is the most that latents can do.
        """
        chosen_on, scored = halves(probes)
        chosen = await self.behaviour_latents(chosen_on, num_latents, seed)

        def changed(model: str, latents: str, **action: bool) -> dict[str, Arm]:
            return {
                behaviour: Arm(model=model, steer=Steer(latents=getattr(each, latents), **action))  # pyright: ignore
                if getattr(each, latents)
                else Arm(model=model)  # pyright: ignore[reportArgumentType]
                for behaviour, each in chosen.items()
            }

        arms: ArmsByBehaviour = {
            "chat": Arm(model="chat"),
            "base": Arm(model="base"),
            "chat ablated": changed("chat", "latents", ablate=True),
            "base transplanted": changed("base", "latents", transplant=True),
            "control": changed("chat", "control", ablate=True),
            "base with chat's stream": Arm(model="base", steer=Steer(swap_stream=True)),
        }
        found = await self.behaviour_rates(scored, arms, max_new_tokens)
        return BehaviourRates(found.crosscoder, found.version_id, found.rates, found.num_cut, chosen)
