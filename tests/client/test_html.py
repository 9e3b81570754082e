"""Notebook output: hostile texts stay texts, numbers are readable, colours are readable."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from crosscope import Encoding, Example, ExampleGroup, TokenRole, Tokens
from crosscope._html import MAX_ALPHA, WASH

HOSTILE = ["<bos>", "<script>alert(1)</script>", '" onmouseover="x', "a\nb", "&amp;", "</div>"]


class Seen(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_tokens() -> Tokens:
    return Tokens(tuple(range(6)), tuple(HOSTILE), (TokenRole.BOS, *[TokenRole.TEXT] * 5))


@pytest.fixture
def encoding() -> Encoding:
    return Encoding(
        crosscoder="<b>demo</b>",
        version_id="v1",
        tokens=hostile_tokens(),
        row_starts=np.array([0, 0, 1, 3, 3, 3, 4]),
        latents=np.array([7, 7, 9, 2]),
        activations=np.array([4.0, 2.0, 1.0, 0.5], dtype=np.float32),
        cached=False,
        compute_ms=0.0,
    )


def test_encoding(encoding: Encoding) -> None:
    seen = Seen(encoding._repr_html_())
    assert {tag for tag, _ in seen.tags} <= {"style", "div", "small", "span"}
    spans = [attributes for tag, attributes in seen.tags if tag == "span"]
    assert len(spans) == 6
    assert all(set(span) <= {"class", "title", "style"} for span in spans)
    assert spans[2]["title"] == "token 2, text: latent 7: 2, latent 9: 1"
    assert spans[0]["title"] == "token 0, bos: no latent"
    assert [re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", span["style"] or "") for span in spans] == [
        *([], ["0.450"], ["0.225"], [], [], ["0.056"]),
    ]
    for piece in HOSTILE:
        assert piece.replace("\n", "↵\n") in seen.texts


def test_example() -> None:
    example = Example(1, "<i>", ExampleGroup.QUANTILE, 2, 0, hostile_tokens(), 5, 20, (1, 3), (2.0, 1.0), 2.0, 1)
    seen = Seen(example._repr_html_())
    assert {tag for tag, _ in seen.tags} <= {"style", "div", "small", "span"}
    assert [a["title"] for t, a in seen.tags if t == "span"][1] == "token 6, text: 2"
    assert "2 · <i> · quantile, band 2" in seen.texts


def test_no_activation_at_all(encoding: Encoding) -> None:
    silent = Encoding("demo", "v1", hostile_tokens(), np.zeros(7, int), np.zeros(0, int), np.zeros(0), False, 0.0)
    assert "rgba" not in silent._repr_html_()
    assert "None" not in silent._repr_html_()


def _luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("paper", "ink"), [((255, 255, 255), (33, 33, 33)), ((17, 17, 17), (230, 230, 230))])
def test_text_on_the_wash_is_readable(share: float, paper: tuple[int, ...], ink: tuple[int, ...]) -> None:
    """WCAG AA, contrast at least 4.5, in a light and a dark notebook."""
    alpha = share * MAX_ALPHA
    ground = tuple(alpha * w + (1 - alpha) * p for w, p in zip(WASH, paper, strict=True))
    bright, dark = sorted((_luminance(ground), _luminance(ink)), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5
