"""The few HTML elements the report is made of; whatever comes from outside goes through `escaped`.

Names of hospitals, classes and files are other people's text: they are escaped, and characters that
cannot be seen (controls, bidirectional overrides, lone surrogates) are shown as replacement signs.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_HALF = ' class="half"'


@dataclass(frozen=True)
class Section:
    """One titled part of the page; `body` is finished HTML, `half` needs half a wide page only."""

    anchor: str
    title: str
    body: str
    half: bool = False


def printable(text: object) -> str:
    """Text as it may be shown: one line, nothing invisible."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(text))


def escaped(text: object) -> str:
    """`printable` text, safe in HTML and in quoted attributes."""
    return html.escape(printable(text), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    return f"{opening}{escaped(text)}</p>"


def missing(text: str) -> str:
    """The sentence that stands where a figure would be, and says why it does not."""
    return paragraph(text, "missing")


def chart(svg: str, described: str, caption: str) -> str:
    """A drawing with its description for those who cannot see it, and its caption."""
    return (
        f'<figure class="chart"><div role="img" aria-label="{escaped(described)}">{svg}</div>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def pair(*parts: str) -> str:
    """Parts side by side where there is room, else below each other."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    texts: int = 1,
    kind: str = "",
    marked: int | None = None,
) -> str:
    """A table whose first column heads its rows.

    Args:
        caption: what the table shows.
        columns: plain-text headings.
        rows: plain-text cells, as many as columns.
        texts: how many columns from the left hold text; those after them are numbers, set right.
        kind: a class of the stylesheet.
        marked: the row that is printed bold.
    """
    align = ["" if index < texts else ' class="number"' for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{how}>{escaped(name)}</th>' for name, how in zip(columns, align, strict=True)
    )
    lines = [_row(row, align, index == marked) for index, row in enumerate(rows)]
    return scrolling(
        caption,
        f'<table class="{kind}"><caption>{escaped(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>",
    )


def scrolling(label: str, content: str) -> str:
    """Content that may be wider than a phone: it scrolls by itself, with the keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(label)}">{content}</div>'


def folded(summary: str, content: str) -> str:
    """Content behind a line that opens it."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"


def _row(cells: Sequence[str], align: Sequence[str], marked: bool) -> str:
    opening = '<tr class="this">' if marked else "<tr>"
    head = f'<th scope="row">{escaped(cells[0])}</th>'
    rest = [f"<td{how}>{escaped(cell)}</td>" for cell, how in zip(cells[1:], list(align)[1:], strict=True)]
    return f"{opening}{head}{''.join(rest)}</tr>"


def page(title: str, stylesheet: str, header: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document. Its policy lets a browser load nothing and run nothing, whatever slipped in."""
    links = "".join(f'<li><a href="#{s.anchor}">{escaped(s.title)}</a></li>' for s in sections)
    parts = "\n".join(
        f'<section id="{s.anchor}"{_HALF if s.half else ""} aria-labelledby="{s.anchor}-title">'
        f'<h2 id="{s.anchor}-title">{escaped(s.title)}</h2>\n{s.body}\n</section>'
        for s in sections
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escaped(title)}</title>\n<style>{stylesheet}</style>\n</head>\n"
        f'<body>\n<div class="page">\n<header>\n{header}\n</header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
        f"<main>\n{parts}\n</main>\n<footer>{escaped(footer)}</footer>\n</div>\n</body>\n</html>\n"
    )
