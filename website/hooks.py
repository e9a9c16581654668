"""The hooks of mkdocs: generated pages join those of ``docs/``, and links in the repository become the site's links."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website import notebook, reference, repository


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the landing page, the tutorial, the reference and every file of the repository that a page links to."""
    generated = {"index.md": repository.read("README.md"), "tutorial.md": notebook.as_markdown()}
    generated |= reference.pages()
    for path, text in generated.items():
        files.append(File.generated(config, path, content=text))
    for path, content in repository.linked_files(config.nav).items():
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, notebook.DOWNLOAD, content=repository.read(repository.NOTEBOOK)))
    files.append(File.generated(config, "site.css", content=repository.read("website/site.css")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from paths in the repository to paths in the site."""
    return repository.with_site_links(markdown, page.file.src_uri)
