"""Latents and prompts as one HTML file: hostile texts stay texts, nothing is loaded, and every number is there."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from crosscope import Client, Encoding, Example, ExampleGroup, InvalidInput, TokenRole, Tokens
from crosscope._export import latents_document
from crosscope._sections import folded, sections

HOSTILE = ("<script>alert(1)</script>", '" onmouseover="x', "a\nb", "&amp;", "</div></section>")


class Seen(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def loads_nothing(seen: Seen) -> None:
    assert {tag for tag, _ in seen.tags}.isdisjoint({"script", "img", "link", "iframe", "object", "base"})
    for _, attributes in seen.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in seen.text
    assert "@import" not in seen.text
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'") in [
        (tag, attributes.get("content")) for tag, attributes in seen.tags
    ]


def example(group: ExampleGroup, ids=(1, 2, 3, 4, 5), maximum: float = 2.0, **more) -> Example:
    roles = (TokenRole.TEXT,) * len(ids)
    fires = group is not ExampleGroup.SILENT
    tokens = Tokens(tuple(ids), HOSTILE, roles)
    return Example(
        3,
        more.pop("dataset", "<i>web"),
        group,
        more.pop("quantile", 0),
        0,
        tokens,
        0,
        5,
        (1,) * fires,
        (maximum,) * fires,
        maximum,
        1,
        **more,
    )


def test_latents_of_a_server(real: Client, tmp_path: Path) -> None:
    crosscoder = real.crosscoder("demo")
    size = crosscoder.export_html(range(20), tmp_path / "latents.html")
    content = (tmp_path / "latents.html").read_bytes()
    seen = Seen(content.decode())
    assert size == len(content) < 1_000_000
    loads_nothing(seen)
    assert [a["id"] for tag, a in seen.tags if tag == "section"] == [f"latent-{i}" for i in range(20)]
    latent = crosscoder.latent(0)
    for said in (str(latent.verdict), str(latent.chat_direction.nu_err), str(latent.frequency), latent.version_id):
        assert said in seen.text
    with pytest.raises(InvalidInput, match="1 to 1000"):
        crosscoder.html([])
    assert latent.to_html(tmp_path / "one.html") == (tmp_path / "one.html").stat().st_size


def test_hostile_texts_stay_texts(real: Client) -> None:
    latent = real.crosscoder("demo").latent(0)
    found = sections([example(group) for group in ExampleGroup], latent.max)
    seen = Seen(latents_document(latent.source.info, [(latent, found)]))
    loads_nothing(seen)
    for piece in HOSTILE:
        assert seen.text.count(piece.replace("\n", "↵\n")) == 3
    assert [a["title"] for tag, a in seen.tags if tag == "b"] == ["2", "2"]
    assert len([tag for tag, _ in seen.tags if tag == "u"]) == 1


def test_a_prompt(tmp_path: Path) -> None:
    tokens = Tokens((1, 2, 3, 4, 5), HOSTILE, (TokenRole.TEXT,) * 5)
    rows = np.array([0, 1, 1, 1, 1, 1])
    encoding = Encoding("<b>", "v1", tokens, rows, np.array([7]), np.array([4.0], np.float32), False, 0.0)
    assert encoding.to_html(tmp_path / "prompt.html") > 0
    seen = Seen((tmp_path / "prompt.html").read_text())
    loads_nothing(seen)
    assert all(piece.replace("\n", "↵\n") in seen.text for piece in HOSTILE)


def test_sections_by_hand() -> None:
    """Bands of two data sets: 3 texts of 2 to 3 and 4 of 1 to 5; of latent maximum 10 that is 10 % to 50 %."""
    members = [
        example(ExampleGroup.TOP),
        example(ExampleGroup.QUANTILE, quantile=1, group_low=2.0, group_high=3.0, group_texts=3),
        example(
            ExampleGroup.QUANTILE,
            (9, 2, 3, 4, 5),
            quantile=1,
            dataset="chats",
            group_low=1.0,
            group_high=5.0,
            group_texts=4,
        ),
        example(ExampleGroup.SILENT, group_texts=8),
    ]
    found = sections(members, 10.0, num_bands=4)
    assert [(each.title, each.remark) for each in found] == [
        ("Strongest", ""),
        ("Band 2 of 4", "from 7 texts of 1 to 5 (10% to 50% of its maximum)"),
        ("Silent on the same token", "8 silent texts were found with the token of its peaks; the nearest are shown"),
    ]


def test_near_duplicates_are_folded() -> None:
    """Equal up to four tokens beside the peak at 1: the third differs there, the second only stands for three more."""
    same, other = (1, 2, 3, 4, 5), (1, 2, 3, 4, 6)
    found = list(folded([example(ExampleGroup.TOP, ids, repeats=n) for ids, n in ((same, 0), (same, 3), (other, 0))]))
    assert [(each.example.tokens.ids, each.more, each.note) for each in found] == [
        (same, 4, "and 4 like it"),
        (other, 0, ""),
    ]
