"""What the pages of all reports have in common: the frame of the document, sortable heads, media inside the page."""

import base64
from html import escape

from dreamkit.training.report.style import CSS, SCRIPT

DASH = "\N{EN DASH}"


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page that needs nothing else.

    Args:
        title: of the window, plain text.
        body: HTML of its sections.
        style: rules after those that all reports have.
        script: after the one that sorts tables.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n<script>{SCRIPT}{script}</script>\n</body>\n</html>\n"
    )


def sort_head(title: str, first: str, text: bool = False) -> str:
    """The head of a column of a table of the class `sortable`; each cell's `data-value` is what it is sorted by.

    Args:
        title: plain text.
        first: `ascending` or `descending`, what the first click gives.
        text: whether the column is set to the left.
    """
    kind = ' class="text"' if text else ""
    return f'<th scope="col"{kind} data-first="{first}"><button type="button">{escape(title)}</button></th>'


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def number_text(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; a dash for `None`."""
    return DASH if value is None else f"{value:,.{digits}f}"


def data_uri(kind: str, content: bytes) -> str:
    """A file inside the page, for `src`.

    Args:
        kind: its media type.
        content: its bytes.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
