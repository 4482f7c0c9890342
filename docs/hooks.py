"""Build the site from this folder, from generated pages and from files of the repository.

In:   mkdocs' configuration, and the Markdown files of this folder.
Out:  the pages of generate.py; CONTRIBUTING.md and CHANGELOG.md as pages; each file of the
      repository that a page links to, next to the pages.
Not:  no text of its own: a page's words stand in Markdown or in the docstrings of the program.
"""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)(#[^)]*)?\)")  # a link that leaves a folder
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_config(config):
    # mkdocs refuses the folder of its own configuration as the source, where it is written down.
    config.docs_dir = str(HERE)
    return config


def on_files(files, config):
    import generate

    for path, text in generate.pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=text.replace("](docs/", "](")))
    for target in sorted(_linked(files)):
        content = (ROOT / target).read_bytes()
        files.append(File.generated(config, f"repository/{target}.txt", content=content))
    return files


def on_page_markdown(markdown, page, **_):
    """Links to files of the repository lead to their copies next to the pages."""

    def lead(match):
        target = _outside(page.file.src_uri, match)
        if target is None:
            return match[0]
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}repository/{target}.txt)"

    return OUTSIDE.sub(lead, markdown)


def _linked(files):
    for file in files.documentation_pages():
        for match in OUTSIDE.finditer(file.content_string):
            if (target := _outside(file.src_uri, match)) is not None:
                yield target


def _outside(page, match):
    """The file of the repository outside of docs/ that a link means, or None."""
    target = (HERE / page).parent.joinpath(match[1] + match[2]).resolve()
    outside = target.is_relative_to(ROOT) and not target.is_relative_to(HERE)
    return target.relative_to(ROOT).as_posix() if outside and target.is_file() else None
