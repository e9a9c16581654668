"""The documentation site: it builds without a warning, asks no other host, and leaves nothing out."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

import fedddpm_app
from fedddpm_app.config.reference import list_keys
from tests.conftest import ROOT
from website.repository import site_path, tracked, with_site_links

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest", "modulepreload"}


class Loads(HTMLParser):
    """Collects what a browser loads with a page, and the ids that a link can name."""

    def __init__(self, text):
        super().__init__()
        self.urls, self.ids, self.missing_alt = [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag in LOADED:
            self.urls.append(given.get(LOADED[tag]) or "")
        if tag == "link" and RELATIONS & set((given.get("rel") or "").split()):
            self.urls.append(given["href"])
        self.missing_alt += tag == "img" and not given.get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the built site, and what the build printed."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "WARNING" not in printed
    assert "ERROR" not in printed
    assert "not included in the" not in printed  # the navigation
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


@pytest.mark.slow
def test_no_page_and_no_style_loads_from_another_host(site, pages):
    for name, text in pages.items():
        loads = Loads(text)
        assert [url for url in loads.urls if re.match(r"(?:[a-z]+:)?//", url)] == [], name
        assert loads.missing_alt == 0, name
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


@pytest.mark.slow
def test_every_page_of_docs_is_built_and_in_the_navigation(pages):
    sources = [path for path in tracked() if path.startswith("docs/") and path.endswith(".md")]
    assert len(sources) > 30
    bar = pages["reference/keys.html"]
    for source in sources:
        page = site_path(source).replace(".md", ".html")
        assert page in pages
        assert f'href="../{page}"' in bar, page


@pytest.mark.slow
def test_every_public_name_key_and_command_has_an_entry(pages):
    objects = "".join(text for name, text in pages.items() if name.startswith("reference/"))
    ids = Loads(objects).ids
    for name in fedddpm_app.__all__:
        (place,) = [each for each in ids if each == f"fedddpm_app.{fedddpm_app._MODULES[name]}.{name}"]
        after = objects.partition(f'id="{place}"')[2][:20_000]
        assert re.search(r"doc-contents[^>]*>.*?<p>\w", after, re.DOTALL), name
    assert {f"key-{key.name}" for key in list_keys()} <= ids
    assert {"fedddpm-run", "fedddpm-compare", "fedddpm-data-export"} <= ids


@pytest.mark.slow
def test_the_search_finds_keys_and_no_place_of_this_machine_is_published(site, pages):
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "auxiliary-sampler-steps" in index
    for name, text in {**pages, "index": index}.items():
        assert str(ROOT) not in text, name


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("index.md", "docs/config.md#the-keys", "config.md#the-keys"),
        ("index.md", "results/demo-metrics.md", "repository/results/demo-metrics.md"),
        ("algorithms/moon.md", "../data.md", "../data.md"),
        ("config.md", "../README.md#results", "index.md#results"),
        ("config.md", "../pyproject.toml", "repository/pyproject.toml.md"),
        ("systems.md", "../docker", "repository/docker/index.md"),
        ("repository/SECURITY.md", "docs/security.md", "../security.md"),
        ("repository/docker/index.md", "server/compose.yml", "server/compose.yml.md"),
        ("config.md", "https://flower.ai", "https://flower.ai"),
        ("config.md", "no-such.md", "no-such.md"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(source, link, expected):
    assert with_site_links(f"[a `b`]({link})", source) == f"[a `b`]({expected})"


def test_code_is_not_changed():
    code = "```\n[x](docs/config.md)\n```\n`[x](docs/config.md)`"
    assert with_site_links(code, "index.md") == code


def test_a_link_to_another_host_is_well_formed():
    for path in (path for path in tracked() if path.endswith(".md")):
        for link in re.findall(r"\]\((\w+:[^)\s]*)", (ROOT / path).read_text(encoding="utf-8")):
            parts = urlsplit(link)
            assert parts.scheme == "https", f"{path}: {link}"
            assert re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]+", parts.hostname), f"{path}: {link}"


def test_nested_lists_are_read_alike_by_a_code_host_and_by_the_site():
    """Python-Markdown needs four spaces."""
    for path in (path for path in tracked() if path.endswith(".md")):
        fences = re.sub(r"^```.*?^```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"^ {1,3}(?:[-*]|\d+\.) ", fences, re.MULTILINE), path
