"""The results of bench.peers as a picture: an SVG with bars, for light and dark pages alike."""

from html import escape
from typing import Any

WIDTH = 860
PANEL_W = 390
NAME_W = 64
FIGURES_W = 132
BAR_H = 18
LINE_H = 25
GROUP_GAP = 34
TOP = 92

# The card has a colour of its own, so that it can be read where the page's theme and the browser's differ.
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: #1f2328 }
  .title { font-size: 17px; font-weight: 600 } .method { font-size: 15px; font-weight: 600 }
  .muted { fill: #656d76 } .small { font-size: 12px } .strong { font-weight: 600 } .end { text-anchor: end }
  .card { fill: #ffffff; stroke: #d1d9e0 } .axis { stroke: #d1d9e0 }
  .kvstore { fill: #0969da } .webdis { fill: #8c959f } .baseline { fill: #c0c7ce }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .muted { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d } .axis { stroke: #3d444d }
    .kvstore { fill: #4493f8 } .webdis { fill: #7d8590 } .baseline { fill: #484f58 }
  }
"""


def draw(results: dict[str, Any]) -> str:
    """The SVG text: a panel for each method, a group for each number of connections, a bar for each server."""
    rows = results["rows"]
    most = max(row["requests_s"] for row in rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    connections = list(dict.fromkeys(row["connections"] for row in rows))
    servers = list(dict.fromkeys(row["server"] for row in rows))
    group_h = len(servers) * LINE_H + GROUP_GAP
    height = TOP + 22 + len(connections) * group_h + 52
    parts = [
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(24, 36, "Requests a second", "title"),
        _text(24, 57, "A longer bar is better; p99 is the latency that one request in a hundred exceeds.", "muted"),
    ]
    for i, method in enumerate(methods):
        x = 24 + i * (WIDTH - 48 - PANEL_W)
        parts.append(_text(x, TOP, method, "method"))
        for j, count in enumerate(connections):
            y = TOP + 26 + j * group_h
            parts.append(_text(x, y, f"{count} connections", "muted small"))
            group = [row for row in rows if row["method"] == method and row["connections"] == count]
            for k, row in enumerate(group):
                parts += _bar(x, y + 10 + k * LINE_H, row, most)
            axis_x = x + NAME_W + 0.5
            parts.append(f'<path class="axis" d="M{axis_x} {y + 7}V{y + 9 + len(group) * LINE_H - LINE_H + BAR_H + 4}"/>')
    first, second = _footer(results)
    parts += [_text(24, height - 38, first, "muted small"), _text(24, height - 19, second, "muted small")]
    label = "; ".join(f"{row['server']}, {row['method']}, {row['connections']}: {row['requests_s']:,.0f}/s" for row in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{escape(label)}">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(x: float, y: float, row: dict[str, Any], most: float) -> list[str]:
    width = max(1.0, (PANEL_W - NAME_W - FIGURES_W) * row["requests_s"] / most)
    start, end, base = x + NAME_W + 1, x + NAME_W + 1 + width, y + BAR_H - 4.5
    strong = "strong" if row["server"] == "kvstore" else ""
    figures = (
        f'<tspan class="strong">{row["requests_s"]:,.0f}</tspan>'
        f'<tspan class="muted small" dx="7">p99 {row["p99_ms"]:.1f} ms</tspan>'
    )
    return [
        _text(x + NAME_W - 8, base, row["server"], f"end {strong}".strip()),
        f'<rect class="{row["server"]}" x="{start:.1f}" y="{y}" width="{width:.1f}" height="{BAR_H}" rx="2"/>',
        f'<text x="{end + 8:.1f}" y="{base}">{figures}</text>',
    ]


def _text(x: float, y: float, words: str, classes: str) -> str:
    return f'<text class="{classes}" x="{x}" y="{y}">{escape(words)}</text>'


def _footer(results: dict[str, Any]) -> tuple[str, str]:
    machine = results["machine"]
    versions = [f"{name} {machine[name]}" for name in ("Python", "Redis", "Valkey", "webdis", "gunicorn") if name in machine]
    return (
        f"baseline: the article's Flask app. Each has {results['workers']} workers or threads and the same Redis. "
        f"{results['documents']:,} documents of 2 members.",
        f"Medians of {results['rounds']} × {results['seconds']} s of wrk on the same {machine['cores']} cores. "
        f"{', '.join(versions)}. {results['when']}.",
    )
