"""Colours of the pages, light and dark.

Series colours are those of Okabe and Ito's colour-blind safe palette ("Color Universal Design", 2008), lightened for
the dark theme and without its vermilion: red stands for "worse" alone.
"""

from __future__ import annotations

from dataclasses import dataclass

FONT_SIZE_PX = 14


@dataclass(frozen=True)
class Palette:
    """One theme's colours as hex strings."""

    background: str
    surface: str
    border: str
    text: str
    muted: str
    primary: str
    worse: str
    worse_background: str
    series: tuple[str, ...]


LIGHT = Palette(
    background="#ffffff",
    surface="#f4f6f8",
    border="#e2e6ea",
    text="#1d2733",
    muted="#66727f",
    primary="#1f6aa5",
    worse="#b3261e",
    worse_background="#fcebe9",
    series=("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#6b5b95", "#8c7a1f", "#6e7781"),
)
DARK = Palette(
    background="#11161d",
    surface="#1a212a",
    border="#2b343f",
    text="#dbe2ea",
    muted="#93a0ad",
    primary="#62aee6",
    worse="#ff8a7d",
    worse_background="#3a1d1c",
    series=("#4aa3df", "#f0b429", "#2dbd93", "#dd97bf", "#a5d8f7", "#a596e0", "#cdb84b", "#9aa5b1"),
)


def palette(theme_type: str | None) -> Palette:
    """The colours of the theme that the browser shows ('light' or 'dark'; None before it has said)."""
    return DARK if theme_type == "dark" else LIGHT


def options() -> dict[str, str]:
    """Streamlit's theme as configuration options, for the command line."""
    found = {
        "theme.baseFontSize": str(FONT_SIZE_PX),
        "theme.baseRadius": "small",
        "theme.metricValueFontSize": "1.6rem",
        "theme.metricValueFontWeight": "500",
        "theme.paddingTop": "0",
        "theme.showWidgetBorder": "true",
    }
    for name, colours in (("light", LIGHT), ("dark", DARK)):
        found |= {
            f"theme.{name}.primaryColor": colours.primary,
            f"theme.{name}.linkColor": colours.primary,
            f"theme.{name}.backgroundColor": colours.background,
            f"theme.{name}.secondaryBackgroundColor": colours.surface,
            f"theme.{name}.textColor": colours.text,
            f"theme.{name}.borderColor": colours.border,
            f"theme.{name}.dataframeBorderColor": colours.border,
            f"theme.{name}.dataframeHeaderBackgroundColor": colours.surface,
            f"theme.{name}.grayTextColor": colours.muted,
            f"theme.{name}.grayBackgroundColor": colours.surface,
            f"theme.{name}.redTextColor": colours.worse,
            f"theme.{name}.redColor": colours.worse,
            f"theme.{name}.redBackgroundColor": colours.worse_background,
        }
    return found
