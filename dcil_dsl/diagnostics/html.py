"""Text as HTML, for notebooks: with the columns that it has in a terminal.

In:   text.
Out:  an element that notebooks show in a font of one width; their own `pre` may have another one.
Not:  no markup in the text has an effect.
"""

from __future__ import annotations

from html import escape

STYLE = "white-space:pre;overflow-x:auto;line-height:1.3;font-family:Menlo,Consolas,monospace"


def preformatted(text: str) -> str:
    """The text as it is."""
    return framed(escape(text))


def framed(html: str) -> str:
    """The same of text in which some parts have a style already."""
    return f'<pre style="{STYLE}">{html}</pre>'
