"""Plain text as HTML: paragraphs, headings and lists, everything escaped."""

import re
from html import escape


def notes_html(text: str) -> str:
    """Paragraphs apart by empty lines; `# ` begins a heading, `- ` an item of a list; `code` and **bold** inside.

    Args:
        text: as it was written; none of it is taken for HTML.
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        while lines and lines[0].startswith("#"):
            blocks.append(f"<h3>{_inline(lines.pop(0).lstrip('# '))}</h3>")
        if lines and all(line.startswith(("- ", "* ")) for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>")
        elif lines:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(blocks)


def _inline(text: str) -> str:
    safe = escape(text)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)
