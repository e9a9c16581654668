"""Files of the repository as pages of the site, and links between them that work in both.

A page of ``docs/`` keeps its path, ``README.md`` is ``index.md``, and every other file that a page links to is under
``repository/``: Markdown as a page, a text as a page that shows it, a folder as a page that lists it, others unchanged.
"""

import posixpath
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNDER = "repository"
LANDING, NOTEBOOK = "README.md", "examples/tour.ipynb"
_SHOWN = {".py": "python", ".toml": "toml", ".yml": "yaml", ".cff": "yaml", ".conf": "nginx", ".sh": "sh"}
_AS_IT_IS = {".json", ".png", ".svg", ".zip"}
_UNSEARCHED = "---\nsearch: {exclude: true}\nhide: [navigation, toc]\n---\n\n"  # code has long lines
_LINK = re.compile(r"(?P<start>\]\()(?P<target>[^)\s]+)(?P<end>\))")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z]+:|#|/")


def read(path: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tracked() -> frozenset[str]:
    """Return the files that git knows; others, such as keys of a deployment, are not for readers."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    return frozenset(listed.stdout.decode().splitlines())


def site_path(path: str) -> str:
    """Return the place in the site's sources of a file or folder of the repository."""
    if path == LANDING:
        return "index.md"
    if path == NOTEBOOK:
        return "tutorial.md"
    if path.startswith("docs/") and (path in tracked()):
        return path.removeprefix("docs/")
    if path not in tracked():
        return f"{UNDER}/{path}/index.md"
    kind = posixpath.splitext(path)[1]
    return f"{UNDER}/{path}" if kind in _AS_IT_IS or kind == ".md" else f"{UNDER}/{path}.md"


def repository_path(source: str) -> str:
    """Return the file of the repository that a page shows; the inverse of ``site_path``, for Markdown files."""
    if source in ("index.md", "tutorial.md"):
        return LANDING if source == "index.md" else NOTEBOOK
    if source.startswith(f"{UNDER}/"):
        return source.removeprefix(f"{UNDER}/")
    return f"docs/{source}"


def linked_files(nav: object) -> dict[str, str | bytes]:
    """Return all files under ``repository/``: those of the navigation, and those that a page links to.

    Parameters
    ----------
    nav : list or dict
        The site's navigation, as in mkdocs.yml.

    Returns
    -------
    dict of str to str or bytes
        The content by path in the site's sources.
    """
    found: dict[str, str | bytes] = {}
    in_nav = [repository_path(path) for path in _leaves(nav) if path.startswith(f"{UNDER}/")]
    left = [*in_nav, *(page for page in tracked() if page == LANDING or _is_page(page))]
    seen = set(left)
    while left:
        path = left.pop()
        place = site_path(path)
        if place.startswith(f"{UNDER}/"):
            found[place] = content_of(path)
        for target in _targets(path) - seen:
            seen.add(target)
            left.append(target)
    return found


def content_of(path: str) -> str | bytes:
    """Return what the site shows of a file or folder of the repository."""
    kind = posixpath.splitext(path)[1]
    if path not in tracked():
        return _listing(path)
    if kind in _AS_IT_IS:
        return (ROOT / path).read_bytes()
    if kind == ".md":
        return read(path)
    return (
        f"{_UNSEARCHED}# {posixpath.basename(path)}\n\n`{path}`\n\n````{_SHOWN.get(kind, 'text')}\n{read(path)}````\n"
    )


def with_site_links(markdown: str, source: str) -> str:
    """Return a page with its relative links rewritten to paths of the site's sources.

    Parameters
    ----------
    markdown : str
        The page.
    source : str
        Its place in the site's sources.
    """
    folder = posixpath.dirname(repository_path(source))

    def rewrite(target: str) -> str:
        path, mark, anchor = target.partition("#")
        resolved = posixpath.normpath(posixpath.join(folder, path))
        if not _exists(resolved):
            return target  # mkdocs then says that it is not found
        return posixpath.relpath(site_path(resolved), posixpath.dirname(source) or ".") + mark + anchor

    return _each_link(markdown, rewrite)


def _is_page(path: str) -> bool:
    return path.startswith("docs/") and path.endswith(".md")


def _exists(path: str) -> bool:
    return path in tracked() or any(each.startswith(f"{path}/") for each in tracked())


def _leaves(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict | list):
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(each)


def _targets(path: str) -> set[str]:
    """Return the files and folders of the repository that a page links to."""
    targets: set[str] = set()
    folder = posixpath.dirname(path) if path in tracked() else path

    def note(target: str) -> str:
        resolved = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        if _exists(resolved):
            targets.add(resolved)
        return target

    text = _listing(path) if path not in tracked() else read(path) if path.endswith(".md") else ""
    _each_link(text, note)
    return targets


def _each_link(markdown: str, change: Callable[[str], str]) -> str:
    """Return a text in which ``change`` has replaced the target of every relative link outside code."""

    def replace(match: re.Match[str]) -> str:
        target = match["target"]
        return match["start"] + (target if _ELSEWHERE.match(target) else change(target)) + match["end"]

    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(replace, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(replace, markdown[end:])])


def _listing(folder: str) -> str:
    """Return a page that lists the files of a folder."""
    names = sorted(path.removeprefix(f"{folder}/") for path in tracked() if path.startswith(f"{folder}/"))
    lines = "\n".join(f"- [{name}]({name})" for name in names if not name.endswith("__init__.py"))
    return f"{_UNSEARCHED}# {folder}\n\n{lines}\n"
