"""The documentation site: what `mkdocs` builds besides the pages of ``docs/``."""
