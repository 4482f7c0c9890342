"""The packages whose words a recipe knows: `recipe name { uses = ["my_scores"] }`.

In:   the `recipe` block, closed.
Out:  the words that those packages declare; E241, E242 in a Diagnostics.
Not:  nothing of a package is imported: a word is when the recipe writes it (words.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.lang import ast
from dcil_dsl.words.blocks import PARTS
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.registry import Declared, NoWord, own_words, words_of


@dataclass(frozen=True)
class Uses:
    """`words`: what may be written beside the language's own. `broken`: some could not be read,
    so that a word that is not known may be one of them."""

    words: dict[str, Declared] = field(default_factory=dict)
    broken: bool = False


def read_uses(block: ast.Block | None, found: Diagnostics) -> Uses:
    """The words of the packages that the block names. What is no list of texts is told where the
    block's settings are."""
    settings = block.settings if block else ()
    given = next((s.value for s in settings if s.name.name == "uses"), None)
    if not isinstance(given, ast.List):
        return Uses(broken=given is not None)
    words: dict[str, Declared] = {}
    places: dict[str, Span] = {}
    broken = False
    for node in given.items:
        if not (isinstance(node, ast.Literal) and isinstance(node.value, str)):
            broken = True
            if isinstance(node, ast.Name):
                found.add(
                    "E206", "a package is named by a text", node.span, help=f'write `"{node.name}"`'
                )
            continue
        try:
            declared = words_of(node.value)
        except NoWord as error:
            found.add("E241", error.message, node.span, help=error.help)
            broken = True
            continue
        for word, one in declared.items():
            other = words.get(word)
            if _is_taken(word):
                found.add(
                    "E242",
                    f"`{word}` of {one.package} {one.version} is a word of the language",
                    node.span,
                    help="the package has to give it another name",
                )
            elif other is not None and other.package == one.package:
                found.add(
                    "E208",
                    f"`{one.package}` is given twice",
                    node.span,
                    others=(Label(places[word], "given here first"),),
                )
                break
            elif other is not None:
                found.add(
                    "E242",
                    f"{one.package} and {other.package} both have a word `{word}`",
                    node.span,
                    others=(Label(places[word], "the other package"),),
                    help="a recipe uses one of the two",
                )
            else:
                words[word], places[word] = one, node.span
    return Uses(words, broken)


def _is_taken(word: str) -> bool:
    return word in (*METRICS, *PARTS) or any(word in table for table in own_words().values())
