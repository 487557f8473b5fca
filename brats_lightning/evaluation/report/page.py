"""The frame of an HTML page that needs nothing but itself, and the parts it is put together from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --panel: #f6f7f9; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5;
  --bad: #b42318; --series0: #c2410c; --series1: #1d6fb8; --series2: #0f8a63; --series3: #7c4dbd; --series4: #b0268f;
  --series5: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181e; --panel: #1d232c; --ink: #e6eaf0; --soft: #9aa6b5;
  --line: #343d4a; --bad: #ff8a7a; --series0: #ff9a5c; --series1: #6db7f5; --series2: #43d3a0; --series3: #bd9bf2;
  --series4: #f08bd6; --series5: #a5adba; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; max-width: 52rem; }
a { color: inherit; }
.soft, caption, figcaption { color: var(--soft); font-size: .87rem; }
.bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .9rem; margin: 1.2rem 0; }
.tile { background: var(--panel); border-radius: .5rem; padding: .8rem 1.1rem; border-left: 4px solid var(--ink); }
.tile b { font-size: 1.9rem; font-weight: 600; line-height: 1.2; margin-right: .4rem; }
.tile div { font-size: .87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; margin: .4rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .28rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
thead tr:last-child th { border-bottom: 2px solid var(--line); }
thead th[colspan] { text-align: center; border-bottom: 1px solid var(--line); }
.text { text-align: left; }
.name { text-align: left; }
td { white-space: nowrap; }
td.text { white-space: normal; min-width: 19rem; }
td small { color: var(--soft); }
tbody tr:hover { background: var(--panel); }
.sortable tr:last-child th { cursor: pointer; }
.sortable th[aria-sort]::after { content: " ▲"; font-size: .7em; }
.sortable th[aria-sort=descending]::after { content: " ▼"; }
figure { margin: .8rem 0; }
figure svg { max-width: 100%; height: auto; display: block; font-family: inherit; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1rem; }
.pictures figure { margin: 0; break-inside: avoid; }
.pictures img { width: 100%; display: block; border-radius: .3rem; background: #000; }
.key { display: inline-block; width: 1.6em; height: .35em; margin: 0 .35em .2em 0; vertical-align: middle; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .87rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media print { :root { --paper: #fff; --panel: #f6f7f9; --ink: #000; --soft: #444; --line: #ccc; }
  body { max-width: none; padding: 0; font-size: 11px; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .pictures { grid-template-columns: repeat(2, 1fr); } }
"""

# Click a heading to sort by its column; cells without a number stay at the end.
_SCRIPT = """
document.querySelectorAll('table.sortable').forEach(table => {
 const headings = table.tHead.rows[table.tHead.rows.length - 1].cells;
 [...headings].forEach((th, i) => {
  th.tabIndex = 0;
  const sort = () => {
    const down = th.getAttribute('aria-sort') !== 'descending', body = table.tBodies[0];
    [...headings].forEach(other => other.removeAttribute('aria-sort'));
    th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const key = row => { const v = row.cells[i].dataset.value; return v === undefined ? row.cells[i].innerText : v; };
    [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      return (isNaN(x) || isNaN(y) ? String(x).localeCompare(y) : x - y) * (down ? -1 : 1);
    }).forEach(row => body.append(row));
  };
  th.addEventListener('click', sort);
  th.addEventListener('keydown', event => { if (event.key === 'Enter') sort(); });
 });
});
"""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        html: its content, escaped already.
        value: what it is sorted by, if not by its text; NaN is sorted last.
        kind: ``""`` for a number, ``text`` or ``name`` (a text that isn't wrapped).
    """

    html: str
    value: int | float | None = None
    kind: str = ""

    def __str__(self) -> str:
        kind = f' class="{self.kind}"' if self.kind else ""
        if self.value is None:
            return f"<td{kind}>{self.html}</td>"
        value = "" if math.isnan(self.value) else f"{self.value:.9g}"
        return f'<td{kind} data-value="{value}">{self.html}</td>'


def number(value: int | float, digits: int = 3) -> str:
    """A number as it is printed; – for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def number_cell(value: int | float, digits: int = 3) -> Cell:
    """A number and itself to sort by."""
    return Cell(number(value, digits), float(value))


def interval_cell(value: float, low: float, high: float, digits: int = 3) -> Cell:
    """A number with its interval in small print."""
    between = "" if math.isnan(low) else f" <small>[{number(low, digits)}, {number(high, digits)}]</small>"
    return Cell(number(value, digits) + between, float(value))


def name_cell(text: str) -> Cell:
    """A name, not yet escaped."""
    return Cell(escape(text), kind="name")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    caption: str = "",
    sortable: bool = False,
    groups: Iterable[tuple[str, int]] = (),
) -> str:
    """An HTML table.

    Args:
        head: the columns' headings, escaped already, as is the caption.
        rows: a column is aligned as its first cell.
        caption: above the table.
        sortable: by a click on a heading.
        groups: headings above the headings, each with the number of columns it spans.
    """
    body = [list(row) for row in rows]
    kinds = [cell.kind for cell in body[0]] if body else [""] * len(head)
    headings = (f'<th scope="col" class="{kind}">{text}</th>' for text, kind in zip(head, kinds, strict=True))
    above = "".join(f'<th colspan="{span}">{text}</th>' for text, span in groups)
    above = f"<tr>{above}</tr>" if above else ""
    lines = "\n".join("<tr>" + "".join(map(str, row)) + "</tr>" for row in body)
    opening = '<table class="sortable">' if sortable else "<table>"
    shown = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll">{opening}{shown}<thead>{above}<tr>{"".join(headings)}</tr></thead>'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def figure(content: str, caption: str) -> str:
    """A figure with a caption; both are HTML."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """A list of terms and values, not yet escaped."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(value)}</dd>" for term, value in items) + "</dl>"


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole page. ``title`` is escaped here, the rest is HTML."""
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="soft">{subtitle}</p>\n{body}\n'
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
