"""From a page to one HTML file: the template, the plotting library inside it, and a policy that forbids requests."""

import base64
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jinja2
import vl_convert
from markupsafe import Markup

from fedddpm_app.disk.durable import replacing
from fedddpm_app.recording.files import RecordingError, without_nan, writing
from fedddpm_app.report.blocks import Chart, Page, Table

LARGEST_BYTES = 5_000_000
_SHORTER = (50_000, 5_000)  # characters of each table of a page that is too large


def save_page(page: Page, path: Path) -> int:
    """Write a page as one HTML file, and return its bytes; its tables are shorter if it would be too large.

    Raises
    ------
    RecordingError
        When it cannot be written, or would have more than ``LARGEST_BYTES``.
    """
    data = render(page).encode()
    for most in _SHORTER:
        if len(data) > LARGEST_BYTES:
            data = render(_with_tables_of(page, most)).encode()
    if len(data) > LARGEST_BYTES:
        raise RecordingError(
            f"{path.name} would have {len(data):,} bytes, more than {LARGEST_BYTES:,}: the run or comparison has more "
            "texts than a page can show; read its stats.jsonl or results.json."
        )
    with writing(path), replacing(path) as work:
        work.touch(mode=0o600)
        work.write_bytes(data)
    return len(data)


def _with_tables_of(page: Page, most: int) -> Page:
    """Return a page whose tables have at most so many characters each."""

    def shorter(block: object) -> object:
        if isinstance(block, Chart):
            return replace(block, table=replace(block.table, most=most))
        return replace(block, most=most) if isinstance(block, Table) else block

    sections = [replace(section, blocks=[*map(shorter, section.blocks)]) for section in page.sections]
    return replace(page, sections=sections)


def render(page: Page) -> str:
    """Return a page as HTML. Texts are escaped, and only the two scripts that this module puts there can run."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    charts = {f"chart-{k}": _json(chart.spec) for k, chart in enumerate(_charts_of(page))}
    scripts = [_library(), _resource("page.js")] if charts else []
    template = environment.from_string(_resource("page.html"))
    return template.render(
        page=page,
        charts={name: Markup(text) for name, text in charts.items()},  # noqa: S704 - no "<" is left in it
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - ours, and the library's
        style=Markup(_resource("page.css")),  # noqa: S704
        policy=_policy(scripts),
    )


def _charts_of(page: Page) -> Iterator[Chart]:
    for section in page.sections:
        yield from (block for block in section.blocks if isinstance(block, Chart))


def _json(spec: object) -> str:
    """Return JSON that cannot end its script element."""
    return json.dumps(without_nan(spec), separators=(",", ":")).replace("<", "\\u003c")


def _policy(scripts: list[str]) -> str:
    """Return a content security policy: no request, and no script other than these; Vega compiles expressions."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    allowed = f" script-src {hashes} 'unsafe-eval';" if scripts else ""
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline';{allowed} base-uri 'none'; form-action 'none'"


@functools.cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed, which set ``window.vegaEmbed``."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    if "</script" in script.lower():
        raise ValueError("the plotting library's script cannot be a part of a page: install another vl-convert-python")
    return f"(() => {{{script}}})();"


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
