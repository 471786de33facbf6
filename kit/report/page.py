"""HTML of the report: one file without scripts and without anything from elsewhere; every text is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

MARK = "<!-- written by kit report -->"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #59636e; --line: #d1d9e0; --band: #f6f8fa;
  --series-0: #0969da; --series-1: #bc4c00; --series-2: #1a7f37; --series-3: #8250df; --series-4: #bf3989;
  --series-5: #9a6700; --series-6: #1b7c83; --series-7: #59636e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9198a1; --line: #3d444d;
  --band: #151b23; --series-0: #58a6ff; --series-1: #f0883e; --series-2: #3fb950; --series-3: #bc8cff;
  --series-4: #f778ba; --series-5: #d29922; --series-6: #39c5cf; --series-7: #9198a1; } }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 50rem; } .soft, figcaption { color: var(--soft); font-size: .87rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--band); } td.number { text-align: right; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: .5rem 0; } svg { max-width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
img { max-width: 100%; display: block; border-radius: 3px; }
"""
LONG = 24  # characters of a cell that may be broken over lines


def page(title: str, sections: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Returns the document.

    Args:
        title: plain text.
        sections: heading, plain text, and elements of HTML.
    """
    parts = [f"<section>\n<h2>{escape(heading)}</h2>\n{chr(10).join(body)}\n</section>" for heading, body in sections]
    return "\n".join([
        "<!DOCTYPE html>", MARK, '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
        f"<h1>{escape(title)}</h1>", *parts, "</body>", "</html>", "",
    ])  # fmt: skip


def paragraph(text: str, soft: bool = False) -> str:
    """Returns a paragraph of plain text."""
    shown = ' class="soft"' if soft else ""
    return f"<p{shown}>{escape(text)}</p>"


def grid(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table of plain cells; None is blank."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    kind = "number" if isinstance(value, int | float) else "long" if len(text) > LONG else ""
    shown = f' class="{kind}"' if kind else ""
    return f"<td{shown}>{escape(text)}</td>"


def plots(figures: Iterable[tuple[str, str]]) -> str:
    """Returns plots side by side.

    Args:
        figures: SVG element and caption, plain text.
    """
    drawn = "\n".join(f"<figure>\n{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in figures)
    return f'<div class="plots">\n{drawn}\n</div>'


def picture(data: str, caption: str) -> str:
    """Returns a picture.

    Args:
        data: of a JPEG, in base64.
        caption: plain text.
    """
    source = f"data:image/jpeg;base64,{data}"
    return f'<figure><img alt="{escape(caption)}" src="{source}"><figcaption>{escape(caption)}</figcaption></figure>'
