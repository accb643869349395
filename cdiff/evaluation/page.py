"""The report's HTML: style, and the few elements that it is built of. Every value is escaped here, once."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STYLE = """
:root{--ink:#1f262b;--soft:#66717a;--line:#dfe4e7;--paper:#fff;--wash:#f5f7f8;--after:#0b7a6f;--before:#7d8a93;--weak:#b44f15}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--wash);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .7rem}
h3{font-size:.95rem;margin:1.5rem 0 .5rem}
p{margin:.4rem 0 .8rem;max-width:72ch}
.soft,small{color:var(--soft)}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin-top:18px}
.cards{display:grid;grid-template-columns:2fr repeat(3,1fr);gap:14px;margin-top:18px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:14px 18px}
.card b{display:block;font-weight:600;font-size:.85rem;color:var(--soft)}
.card .now{font-size:1.5rem;font-weight:650;font-variant-numeric:tabular-nums}
.card.first .now{font-size:2.5rem;line-height:1.15}
.up{color:var(--after)}.down{color:var(--weak)}
.wide{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 8px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:.8rem;vertical-align:bottom;white-space:normal}
th:first-child,td:first-child{text-align:left;padding-left:0}
td small{display:block;white-space:normal}
td.text,th.text{text-align:left;white-space:normal;min-width:15rem}
tr.sum td{font-weight:600;border-top:2px solid var(--line)}
.two{display:grid;grid-template-columns:1fr 1fr;gap:10px 34px;margin-top:1rem}.two>div{min-width:0}
.two h3{margin-top:.4rem}
svg{display:block;width:100%;max-width:480px;height:auto;font:11px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--ink)}
svg text{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
svg .soft{fill:var(--soft)}svg .track{fill:#eceff1}svg .weak{fill:var(--weak)}
svg .axis{stroke:#d3d9dd}svg .base{stroke:var(--before);stroke-dasharray:4 3}
svg .line{fill:none;stroke:var(--after);stroke-width:1.6;opacity:.55}svg .whisker{stroke:var(--ink);stroke-width:1.3}
svg .before{fill:var(--before)}svg .after{fill:var(--after)}svg .hollow{fill:#fff;stroke:var(--weak);stroke-width:2}
svg .gain{stroke:var(--after);stroke-width:3;opacity:.45}svg .loss{stroke:var(--weak);stroke-width:3;opacity:.55}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(430px,1fr));gap:16px}
.pictures.small{grid-template-columns:repeat(auto-fill,minmax(200px,1fr))}
figure{margin:0}.pictures figure:only-child{grid-column:1/-1}
figure img{display:block;width:100%;height:auto;border:1px solid var(--line);border-radius:4px}
figcaption{font-size:.82rem;color:var(--soft);margin-top:4px;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(130px,max-content) 1fr;gap:4px 18px;margin:0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:10px 12px;font-size:.84rem;overflow-x:auto;margin:.3rem 0 .8rem}
summary{cursor:pointer;color:var(--soft);font-size:.9rem;margin-top:.8rem}
ul{padding-left:1.2rem;margin:.4rem 0}li{margin:.2rem 0;max-width:80ch;overflow-wrap:anywhere}
.badge{display:inline-block;border-radius:99px;padding:0 9px;font-size:.8rem;border:1px solid currentColor}
@media(max-width:720px){
 main{padding:18px 12px 48px}section{padding:16px 14px}h1{font-size:1.35rem}
 .cards{grid-template-columns:1fr 1fr 1fr;gap:8px}.card{padding:10px 12px}.card.first{grid-column:1/-1}
 .card .now{font-size:1.15rem}.two{grid-template-columns:1fr}.pictures:not(.small){grid-template-columns:1fr}
 dl{grid-template-columns:1fr}dt{margin-top:4px}
}
@media print{body{background:#fff}section,.card{break-inside:avoid;border-color:#ccc}}
"""


class Markup(str):
    """HTML that is safe as it stands; every other text is escaped."""

    __slots__ = ()


def text(value: object) -> str:
    """A value as HTML: markup as it is, anything else escaped; None is a dash."""
    if isinstance(value, Markup):
        return value
    return "–" if value is None else escape(str(value))


def document(title: str, body: Sequence[str]) -> str:
    """A whole page that needs no other file."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Nothing may be fetched and nothing may run, whatever a file name in the data set says.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    inner = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{inner}</section>" if inner else ""


def paragraph(sentence: object, soft: bool = False) -> str:
    return f"<p{' class=soft' if soft else ''}>{text(sentence)}</p>"


def table(
    header: Sequence[object], rows: Sequence[Sequence[object]], prose: Sequence[int] = (), total: bool = False
) -> str:
    """A table that scrolls sideways on small screens.

    Args:
        prose: columns of running text, set to the left and wrapped.
        total: the last row is a sum.
    """
    if not rows:
        return ""
    kinds = [' class="text"' if column in prose else "" for column in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}>{text(cell)}</th>' for kind, cell in zip(kinds, header, strict=True)
    )
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="sum"' if total and number == len(rows) - 1 else ""
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr{mark}>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def facts(values: Mapping[str, object]) -> str:
    """Names and values beneath each other."""
    if not values:
        return ""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{text(v)}</dd>" for k, v in values.items()) + "</dl>"


def listing(items: Sequence[object]) -> str:
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>" if items else ""


def details(summary: str, *parts: str) -> str:
    inner = "\n".join(part for part in parts if part)
    return f"<details><summary>{escape(summary)}</summary>\n{inner}</details>" if inner else ""


def columns(*parts: str) -> str:
    """Parts beside each other where there is room."""
    filled = [part for part in parts if part]
    return '<div class="two">' + "".join(f"<div>{part}</div>" for part in filled) + "</div>" if filled else ""


def chart(title: str, svg: str, note: str = "") -> str:
    return f"<h3>{escape(title)}</h3>{svg}" + (f"<small>{text(note)}</small>" if note else "")


def figure(pixels: NDArray[np.uint8], caption: str) -> str:
    return f'<figure><img src="{data_uri(pixels)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture inside the page: JPEG with full colour resolution, so that thin coloured outlines stay clear."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def signed(value: float | None, digits: int = 3) -> Markup:
    """A change with its sign and colour."""
    if value is None:
        return Markup("–")
    shown = round(value, digits)  # what is shown as zero is not coloured as a change
    kind = "up" if shown > 0 else "down" if shown < 0 else "soft"
    return Markup(f'<span class="{kind}">{f"{shown:+.{digits}f}" if shown else "0"}</span>')
