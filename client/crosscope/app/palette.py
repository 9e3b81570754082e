"""Colours: of the two themes, of the classes of latents, of activations. All combinations that carry text meet WCAG AA.

Class colours are Okabe and Ito's, which people with colour-blindness tell apart; they always stand beside a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crosscope import TokenRole
from crosscope_proto.roles import TEMPLATE_ROLES


@dataclass(frozen=True)
class Theme:
    """One theme's surfaces, as #rrggbb."""

    background: str
    surface: str
    text: str
    muted: str
    border: str
    primary: str


LIGHT = Theme(
    background="#fdfdfc", surface="#f4f4f1", text="#1d2126", muted="#5c636d", border="#dcdcd6", primary="#0b6196"
)
DARK = Theme(
    background="#14171b", surface="#1d2126", text="#e7e9ec", muted="#a0a7b1", border="#343a42", primary="#7cc0ee"
)

CLASS_COLOURS: Mapping[str, str] = {
    "chat_only": "#d55e00",
    "base_only": "#0072b2",
    "shared": "#009e73",
    "other": "#8a8f98",
    "dead": "#b4b8be",
}
CLASS_NAMES: Mapping[str, str] = {
    "chat_only": "chat-only",
    "base_only": "base-only",
    "shared": "shared",
    "other": "other",
    "dead": "dead",
}
VERDICT_NAMES: Mapping[str, str] = {
    "supported": "supported",
    "weak": "weak",
    "contradicted": "contradicted",
    "too_few": "too few",
    "not_judged": "not judged",
}
SPECIFIC_NAMES: Mapping[str, str] = {"chat": "specific to chat", "base": "specific to base", "each": "a row in each"}
MODEL_COLOURS = (CLASS_COLOURS["base_only"], CLASS_COLOURS["chat_only"])
"""Base and chat wherever the two stand side by side."""

RUN_COLOURS = ("#6b7f8c", "#cc5aa0", "#b8860b", "#5b6fd6", "#3a9a8f", "#c4553b")
"""Curves of runs side by side, in their order; a legend names each."""

NEUTRAL = "#6b7f8c"
"""Bars and curves that stand for neither a class nor a model."""
ACTIVATION = "#d98a2b"
"""Bars of activations."""
OUTLINE = "#8a8f98"
"""An area drawn over a chart, and template tokens."""

ROLE_NAMES: Mapping[TokenRole, str] = {
    TokenRole.TEXT: "documents",
    TokenRole.BOS: "BOS",
    TokenRole.HEADER: "role headers",
    TokenRole.TURN_END: "turn ends",
    TokenRole.SYSTEM: "system",
    TokenRole.USER: "user",
    TokenRole.ASSISTANT: "assistant",
    TokenRole.REASONING: "reasoning",
    TokenRole.TOOL: "tools",
    TokenRole.PAD: "padding",
}
ROLE_COLOURS: Mapping[TokenRole, str] = {
    **dict.fromkeys(TokenRole, NEUTRAL),
    **dict.fromkeys(TEMPLATE_ROLES, OUTLINE),
    TokenRole.REASONING: "#a0578f",
    TokenRole.TOOL: "#7a7d2e",
}
"""Reasoning, tools and the template stand apart from documents and turns."""

REL_NORM_SCALE: tuple[tuple[float, str], ...] = (
    (0.0, "#0072b2"),
    (0.25, "#5b9ec4"),
    (0.5, "#9aa39c"),
    (0.75, "#dd9257"),
    (1.0, "#d55e00"),
)
"""Base-only blue to chat-only vermilion, through a grey that shows on both themes."""

CIVIDIS = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
"""A ramp whose lightness rises evenly, also for people with colour-blindness (Nuñez, Anderton & Renslow 2018)."""

HEAT = {"light": "#f59e2e", "dark": "#9a5208"}
"""A token's background at the top of the scale."""
COOL = {"light": "#6fb7e8", "dark": "#1f5f8f"}
"""The same of a second latent beside the first."""
MARK = {"light": "#a34700", "dark": "#ffb454"}
"""The line below an active token."""


def theme_options() -> dict[str, str | int]:
    """Both themes as Streamlit options; the viewer's system chooses between them."""
    options: dict[str, str | int] = {
        "theme.font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif",
        "theme.codeFont": "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace",
        "theme.baseFontSize": 15,
        "theme.baseRadius": "6px",
        "theme.codeFontSize": "0.85rem",
    }
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        options |= {
            f"theme.{name}.primaryColor": theme.primary,
            f"theme.{name}.backgroundColor": theme.background,
            f"theme.{name}.secondaryBackgroundColor": theme.surface,
            f"theme.{name}.textColor": theme.text,
            f"theme.{name}.borderColor": theme.border,
            f"theme.{name}.linkColor": theme.primary,
        }
    return options


def css_variables(selector: str) -> str:
    """A rule that gives style sheets the colours of both themes, as --xs-text, --xs-muted, --xs-heat, …"""
    colours = {name: (getattr(LIGHT, name), getattr(DARK, name)) for name in vars(LIGHT)}
    colours |= {name: (each["light"], each["dark"]) for name, each in (("heat", HEAT), ("cool", COOL), ("mark", MARK))}
    lines = "".join(f"  --xs-{name}: light-dark({light}, {dark});\n" for name, (light, dark) in colours.items())
    return f"{selector} {{\n{lines}}}\n"


def channels(colour: str) -> tuple[float, float, float]:
    """Red, green and blue of #rrggbb, 0 to 1."""
    return (int(colour[1:3], 16) / 255, int(colour[3:5], 16) / 255, int(colour[5:7], 16) / 255)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
