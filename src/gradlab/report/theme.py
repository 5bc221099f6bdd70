"""Colours and chart defaults. Safe for colour-blind readers: Okabe and Ito's palette, and blue against orange."""

from __future__ import annotations

from typing import Any

import altair as alt

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B"]
MANY = [
    *("#4c78a8", "#9ecae9", "#f58518", "#ffbf79", "#54a24b", "#88d27a", "#b79a20", "#f2cf5b", "#439894", "#83bcb6"),
    *("#e45756", "#ff9d98", "#79706e", "#bab0ac", "#d67195", "#fcbfd2", "#b279a2", "#d6a5c9", "#9e765f", "#d8b5a5"),
]
GREY, INK, UNDEFINED = "#8a8f98", "#1f2328", "#e6e8eb"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH = 915
"""Of the widest chart, in pixels, axes included."""

CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "#57606a", "titleColor": "#57606a", "titleFontWeight": "normal", "gridColor": "#eceef1",
        "domainColor": "#c9ced6", "tickColor": "#c9ced6", "labelFontSize": 11, "titleFontSize": 11,
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 420,
               "titleColor": "#57606a", "symbolStrokeWidth": 3, "symbolOpacity": 1},
    "header": {"labelFontSize": 12, "labelFontWeight": 600, "labelColor": INK, "title": None, "labelPadding": 6},
    "title": {"fontSize": 12, "fontWeight": 600, "anchor": "start", "color": INK},
}  # fmt: skip


def colour(field: str, domain: list[str], title: str | None = None, symbol: str = "stroke") -> alt.Color:
    """One fixed colour a name, the same in every chart of the page; legend above, to be clicked."""
    palette = PALETTE if len(domain) <= len(PALETTE) else MANY
    colours = [palette[i % len(palette)] for i in range(len(domain))]
    legend = alt.Legend(
        orient="top", title=title, symbolType=symbol, columns=max(1, min(6, 140 // max(map(len, domain), default=1)))
    )
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=domain, range=colours), legend=legend)


def facet_width(n: int, left: int, between: int) -> tuple[int, int]:
    """Columns of a figure of `n` panels, and a panel's width: `left` pixels of axis once, `between` beside each."""
    columns = min(n, 3) if n != 4 else 2
    return columns, (WIDTH - left) // columns - between
