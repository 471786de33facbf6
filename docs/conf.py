"""Sphinx: the Markdown pages as a site. `tox -e docs` builds it into build/docs.

The pages stay plain CommonMark for GitHub. README.md is the home page, and its table of pages is the navigation.
"""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = html_title = "kit"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "benchmarks/*.md"]
extensions = ["myst_parser"]
myst_heading_anchors = 4  # anchors as on GitHub
html_theme = "furo"
html_show_copyright = html_show_sourcelink = html_copy_source = False


def add_navigation(app: Sphinx, docname: str, content: list[str]) -> None:
    """Appends to the home page a list of all pages, in the order of its table."""
    if docname == root_doc:
        named = re.findall(r"\((docs/\w+)\.md\)", content[0].partition("## Documentation")[2])
        pages = dict.fromkeys([*named, *sorted(app.env.found_docs - {root_doc})])
        content[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Copies the home page to the name that web servers look for."""
    if not error and app.builder.name == "html":
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Registers both."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", add_index)
