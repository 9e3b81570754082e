"""What the Steer page says where changes move no word, worked by hand."""

from dataclasses import replace

import numpy as np

from crosscope import Answer, Arm, Steer, TokenRole, Tokens
from crosscope.app.unmoved import unmoved

WORDS = ("I", " cannot", " help")


def answer(
    model: str = "chat",
    *changes: Steer,
    text: str = "I cannot help",
    moved: float = 0.0,
    changed: int = 3,
    **more: object,
) -> Answer:
    """An answer of three tokens, the second of which is less probable by `moved` nats."""
    values = np.array([-0.5, -1.0 - moved, -0.25], np.float32)
    tokens = Tokens((1, 2, 3), WORDS, (TokenRole.ASSISTANT,) * 3)
    arm = Arm(model=model, steer=changes)  # pyright: ignore[reportArgumentType]
    found = Answer(arm, 0, 0, text, tokens, values, "turn_end", changed if changes else 0, 0)
    return replace(found, **more)  # pyright: ignore[reportArgumentType]


def test_a_word_that_moved_or_an_answer_that_was_cut_says_nothing() -> None:
    ablate = Steer(latents=(7, 9), ablate=True)
    assert unmoved([answer("base"), answer("chat")]) is None  # nothing is steered
    assert unmoved([answer(), answer("chat", ablate, text="I can help")]) is None
    both = [answer("base"), answer(), answer("base", ablate), answer("chat", ablate, text="other")]
    assert unmoved(both) is None  # one of two models moved
    assert unmoved([answer(), answer("chat", ablate, reason="cancelled")]) is None
    assert unmoved([answer(sample=1), answer("chat", ablate)]) is None  # no plain answer of this sample


def test_it_says_how_far_probabilities_moved_and_to_take_more_latents() -> None:
    ablate = Steer(latents=(7, 9), ablate=True)
    found = unmoved([answer("base"), answer(), answer("base", ablate), answer("chat", ablate, moved=0.125)])
    assert found is not None
    assert found.said == (
        "With the changes, base and chat answer the same, word for word; no token's log-probability moved by more than "
        "0.12 nats."
    )
    starts = [line.split(":")[0].split(",")[0] for line in found.tries]
    assert starts == ["More latents together", "*Add the whole stream*", "The colour *steered less plain*"]


def test_latents_that_fire_nowhere_need_another_prompt() -> None:
    ablate = Steer(latent=7, ablate=True, reach="generated")
    found = unmoved([answer(), answer("chat", ablate, changed=0, num_left_out=1)])
    assert found is not None
    assert "chat answers the same, word for word; no probability moved." in found.said
    starts = [line.split(" ")[0] for line in found.tries]
    assert starts == ["A", "Changes", "*Also"]
    assert "they fire nowhere here" in found.tries[0]


def test_latents_that_fire_in_one_model_alone_say_in_which_they_do_not() -> None:
    ablate = Steer(latents=(7, 9), ablate=True)
    found = unmoved([answer("base"), answer(), answer("base", ablate), answer("chat", ablate, changed=0)])
    assert found is not None
    assert "in chat they fire nowhere here" in found.tries[0]
    assert found.tries[1].startswith("More latents together")


def test_what_changes_nothing_by_itself_and_the_ceiling_are_named() -> None:
    def tries(change: Steer) -> str:
        found = unmoved([answer(), answer("chat", change)])
        assert found is not None
        return found.tries[0]

    assert tries(Steer(latent=7, scale=1.0)) == "Another strength: a factor of 1 changes nothing."
    assert tries(Steer(latent=7, add=0.0)) == "Another strength: a strength of 0 changes nothing."
    assert tries(Steer(latent=7, add=2.0)).startswith("A larger strength")
    assert tries(Steer(swap_stream=True)).startswith("Another prompt: with the other model's whole stream")
