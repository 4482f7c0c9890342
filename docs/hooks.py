"""Build the site from this folder, from generated pages and from files of the repository.

In:   mkdocs' configuration, and the Markdown files of this folder.
Out:  the pages of generate.py; the repository's own Markdown files of PAGES; each file of the
      repository that a page links to, as text next to the pages.
Not:  no text of its own: a page's words stand in Markdown or in the docstrings of the program.
"""

import os
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)([^)#\s]+)(#[^)]*)?\)")
PAGES = {  # page of the site -> file of the repository
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "tour.md": "dcil_dsl/README.md",
    "recipes.md": "recipes/README.md",
    "benchmarks.md": "benchmarks/README.md",
}
PAGE_OF = {source: page for page, source in PAGES.items()}


def on_config(config):
    # mkdocs refuses the folder of its own configuration as the source, where it is written down.
    config.docs_dir = str(HERE)
    return config


def on_files(files, config):
    sys.path.insert(0, str(HERE))  # mkdocs restores the path after loading this file
    from generate import pages

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=text))
    linked = set()
    for file in files.documentation_pages():
        for match in LINK.finditer(file.content_string):
            target = _target(file.src_uri, match[2])
            if (ROOT / target).is_file() and _page(target) is None:
                linked.add(target)
    for target in sorted(linked):
        content = (ROOT / target).read_bytes()
        files.append(File.generated(config, _copy(target), content=content))
    return files


def on_page_markdown(markdown, page, **_):
    """Links to files of the repository lead to their pages, or to their copies."""
    here = Path(page.file.src_uri).parent.as_posix()

    def lead(match):
        words, target, anchor = match[1], _target(page.file.src_uri, match[2]), match[3] or ""
        if (ROOT / target).is_dir():
            return words
        found = _page(target) or (_copy(target) if (ROOT / target).is_file() else None)
        return f"[{words}]({os.path.relpath(found, here)}{anchor})" if found else match[0]

    return LINK.sub(lead, markdown)


def _target(page: str, link: str) -> str:
    """What a link of a page means, as a path from the root of the repository."""
    folder = Path(PAGES.get(page, f"docs/{page}")).parent
    return os.path.normpath(folder / link)


def _page(target: str) -> str | None:
    """The page or picture of the site that a file of the repository is; None for other files."""
    if target.startswith("docs/") and not target.endswith(".py"):
        return target.removeprefix("docs/")
    return PAGE_OF.get(target)


def _copy(target: str) -> str:
    return f"repository/{target}.txt"
