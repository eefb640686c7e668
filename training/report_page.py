"""The report as one HTML page: style, banner, contents, sections. No script, no external resource, printable."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import List, Sequence, Tuple

from .report_figures import Picture
from .report_tables import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1a1a1a;
  background: #fff; margin: 0 auto; padding: 1.5em 1.5em 4em; max-width: 62em; }
h1 { font-size: 1.7em; line-height: 1.2; margin: .4em 0 .2em; }
h2 { font-size: 1.3em; margin: 2.2em 0 .5em; padding-top: .5em; border-top: 2px solid #1a1a1a; }
h3 { font-size: 1.08em; margin: 1.8em 0 .4em; }
p { margin: .5em 0; max-width: 48em; }
.lead { color: #444; }
nav { columns: 2; margin: 1em 0 0; padding: .8em 1em; background: #f5f5f2; font-size: .93em; }
nav a { display: block; color: #0b4f79; text-decoration: none; }
nav a.sub { padding-left: 1.2em; }
.banner { background: #b3261e; color: #fff; font-weight: 600; padding: .8em 1em; margin: 0 0 1em;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.prefer { border-left: 4px solid #0072B2; background: #eef5fa; padding: .5em 1em; margin: 1em 0;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.prefer h4 { margin: 0 0 .2em; font-size: 1em; }
.prefer p { margin: .3em 0; }
.table { margin: 1.2em 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86em; font-variant-numeric: tabular-nums; }
.caption { margin: 0 0 .4em; color: #333; font-size: .9em; }
th, td { padding: .28em .6em; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th { border-bottom: 1.5px solid #1a1a1a; font-weight: 600; vertical-align: bottom; white-space: normal; }
th.label, td.label { text-align: left; }
td small { display: block; color: #666; font-size: .85em; }
td.few, td.few small { color: #a0a0a0; }
.notes { font-size: .82em; color: #555; max-width: none; }
figure { margin: 1.2em 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .88em; color: #333; max-width: 52em; }
footer { margin-top: 3em; font-size: .85em; color: #555; border-top: 1px solid #ddd; padding-top: .6em; }
@media print {
  body { font-size: 10pt; padding: 0; max-width: none; }
  nav { columns: 2; }
  h2 { break-before: page; border-top: 0; }
  h2, h3 { break-after: avoid; }
  figure, .prefer, tr { break-inside: avoid; }
  thead { display: table-header-group; }
  .wide { overflow: visible; }
  .caption { break-after: avoid; }
  table { font-size: 8pt; }
  th, td { padding: .2em .35em; }
}
@page { size: A4; margin: 16mm 14mm; }
"""


@dataclass
class Section:
    """A part of the page.

    Attributes:
        anchor: Name that links point to.
        title: Heading.
        level: 2 or 3.
        blocks: HTML, in order.
        tables: The tables among them, for CSV.
    """

    anchor: str
    title: str
    level: int = 2
    blocks: List[str] = field(default_factory=list)
    tables: List[Table] = field(default_factory=list)

    def text(self, *paragraphs: str) -> None:
        """Add paragraphs of plain text."""
        self.blocks += [f"<p>{html.escape(text)}</p>" for text in paragraphs if text]

    def bullets(self, lines: Sequence[str]) -> None:
        """Add a list of plain texts."""
        if lines:
            self.blocks.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")

    def prefer(self, paragraphs: Sequence[Tuple[str, str]]) -> None:
        """Add the box that says which model to prefer here, from (what is compared, what to make of it)."""
        if paragraphs:
            body = "".join(
                f"<p>{f'<b>{html.escape(head)}.</b> ' if head else ''}{html.escape(text)}</p>"
                for head, text in paragraphs
            )
            self.blocks.append(f'<div class="prefer"><h4>Which model to prefer here</h4>{body}</div>')

    def table(self, *tables: Table) -> None:
        """Add tables."""
        self.tables += tables
        self.blocks += [table.to_html() for table in tables]

    def figure(self, label: str, caption: str, picture: Picture) -> None:
        """Add a figure with its caption."""
        alt, words = html.escape(picture.alt, quote=True), html.escape(caption)
        self.blocks.append(
            f'<figure><img src="{picture.uri}" alt="{alt}">'
            f"<figcaption><b>{html.escape(label)}.</b> {words}</figcaption></figure>"
        )


SIMULATED = (
    "Simulated data. Nothing in this report was observed: the figures test the method and say nothing about any place. "
    "Not for decisions."
)


def write_page(title: str, lead: str, sections: Sequence[Section], simulated: bool, footer: str) -> str:
    """Write the whole page.

    Args:
        title: Heading and title.
        lead: What the report is about, in a sentence or two.
        sections: In order.
        simulated: Puts the banner on top, and again before each task.
        footer: How it was made.
    """
    banner = f'<div class="banner">{html.escape(SIMULATED)}</div>' if simulated else ""
    links = "".join(
        f'<a href="#{s.anchor}"{" class=sub" if s.level == 3 else ""}>{html.escape(s.title)}</a>' for s in sections
    )
    parts: List[str] = []
    for s in sections:
        parts.append(f'<h{s.level} id="{s.anchor}">{html.escape(s.title)}</h{s.level}>')
        # A printed section may be passed on without the first page.
        parts += [banner] if banner and s.level == 2 and s is not sections[0] else []
        parts += s.blocks
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{banner}"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p><nav>{links}</nav>'
        + "\n".join(parts)
        + f"<footer>{html.escape(footer)}</footer></body></html>\n"
    )
