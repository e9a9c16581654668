"""The tour as a page: its cells in Markdown, and its stored outputs."""

from typing import Any

import nbformat

from website.repository import NOTEBOOK, ROOT, UNDER

DOWNLOAD = f"{UNDER}/{NOTEBOOK}"
_OPENING = f"[Download the notebook]({DOWNLOAD}). The outputs below are those of two CPU cores that other work shared."


def as_markdown() -> str:
    """Return the notebook as a Markdown page; pictures are embedded."""
    first, *cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    return "\n\n".join([*_parts(first), _OPENING, *(part for cell in cells for part in _parts(cell))]) + "\n"


def _parts(cell: Any) -> list[str]:
    if cell.cell_type == "markdown":
        return [cell.source]
    code = f"```python\n{cell.source}\n```"
    return [code, *(shown for output in cell.outputs if (shown := _shown(output)))]


def _shown(output: Any) -> str:
    """Return an output: a picture or HTML if it has one, else its text."""
    if output.output_type == "stream":
        return _text(output.text)
    data = output.get("data", {})
    if "image/png" in data:
        alt = output.metadata.get("image/png", {}).get("alt", "")
        return f'<img class="output" alt="{alt}" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    if "text/markdown" in data:
        return str(data["text/markdown"])
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    return _text(data.get("text/plain", ""))


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
