"""Searches by the SDK and the command line, against a real server."""

from typing import Any

import pytest

import crosscope
from crosscope import Client, InvalidInput


def test_a_search_gives_latents_with_where_they_match_and_prints_what_was_not_searched(real: Client) -> None:
    demo = real.crosscoder("demo")
    found = demo.search(" help", limit=3)
    assert len(found) == 3 < found.num_matching
    best = found[0]
    assert best.example is not None
    assert best.example.matched == " help"
    assert best.example.activation is not None
    assert best.num_peaking >= found[1].num_peaking >= found[2].num_peaking > 0
    assert f"{best.num_peaking}" in best.why
    assert "⟦ help⟧" in str(found)
    assert "latents by place: label 0, peak" in found.remarks[0]
    [example] = [e for e in demo.latent(best.latent.id).examples(100) if e.sequence_id == best.example.sequence_id][:1]
    pieces = example.tokens.pieces[best.example.token_start : best.example.token_end]
    assert "".join(pieces).startswith(" help")
    assert not demo.search("<b>no such text</b>")
    everything = demo.search("a", ["example"], limit=2000)
    assert len({each.latent.id for each in everything}) == len(everything) == everything.num_matching


def test_bad_searches_are_refused_with_the_field(real: Client) -> None:
    demo = real.crosscoder("demo")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("", {}, "0 characters"),
        ("x" * 10_000_000, {}, "10000000 characters"),
        ("a**", {"regex": True}, "at character 1"),
        ("a", {"places": "attic"}, "'attic' is no place"),
    ]
    for text, more, reason in cases:
        with pytest.raises(InvalidInput, match=reason):
            demo.search(text, **more)
    assert crosscope.SearchPlace.EXAMPLE == "example"
