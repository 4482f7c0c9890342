"""Names in recipes: where they are defined and used, and the outline of a file.

In:   an Analysis, an offset; other recipes of the workspace, of which some extend each other.
Out:  definitions, references and edits of a renaming, by file; document symbols; folding ranges.
Not:  nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lsprotocol.types import DocumentSymbol, FoldingRange, FoldingRangeKind, SymbolKind

from dcil_dsl.diagnostics import RecipeError, Source, Span
from dcil_dsl.extras.lsp.analysis import Analysis
from dcil_dsl.extras.lsp.tree import Occurrence, occurrences
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import kind_of
from dcil_dsl.lang.build import build_file
from dcil_dsl.lang.link import MAX_PARENTS
from dcil_dsl.lang.parse import parse_text
from dcil_dsl.lang.statements import CLAUSES, STATEMENTS
from dcil_dsl.lang.tokens import Unreadable, read
from dcil_dsl.words.registry import own_words

_EXTENDS = re.compile(r'^[ \t]*extends[ \t]+"([^"\n]+)"', re.MULTILINE)
NAME = re.compile(r"[a-z_][a-z0-9_]*")
MOST_FILES = 500  # of a workspace that are read for references


class NotRenamed(Exception):
    """The name cannot be changed, with the reason."""


@dataclass(frozen=True)
class Opened:
    """A recipe with its syntax tree. path None: a text that is not saved."""

    path: Path | None
    source: Source
    file: ast.File

    @property
    def parent(self) -> Path | None:
        if self.file.extends is None or self.path is None:
            return None
        return (self.path.parent / str(self.file.extends.value)).resolve()


def opened(path: Path, texts: dict[Path, str]) -> Opened | None:
    """A file as the editor has it, else as the disk has it; None where it does not parse."""
    try:
        text = texts[path] if path in texts else read(path, is_parent=True)
        source = Source(text, str(path), path.parent)
        return Opened(path, source, build_file(parse_text(source)))
    except (RecipeError, Unreadable):
        return None


def family(
    analysis: Analysis, path: Path | None, others: Iterable[Path], texts: dict[Path, str]
) -> list[Opened]:
    """The text, its parents, and every other recipe that has a parent in common with it.

    others  the recipes of the workspace
    """
    assert analysis.file is not None
    own = Opened(path, analysis.source, analysis.file)
    if path is None:
        return [own]
    known: dict[Path, Opened | None] = {path: own}

    def chain(one: Opened) -> Iterator[Opened]:
        for _ in range(MAX_PARENTS + 1):
            yield one
            parent = one.parent
            if parent is None:
                return
            if parent not in known:
                known[parent] = opened(parent, texts)
            above = known[parent]
            if above is None:
                return
            one = above

    found = {id(one): one for one in chain(own)}
    for other in list(others)[:MOST_FILES]:
        if other not in known:
            known[other] = opened(other, texts)
        one = known[other]
        line = list(chain(one)) if one is not None else []
        if any(id(each) in found for each in line):
            found |= {id(each): each for each in line}
    return list(found.values())


def broken_relatives(
    files: list[Opened], others: Iterable[Path], texts: dict[Path, str]
) -> list[Path]:
    """Recipes that belong to a family by their `extends` but do not parse, and missing parents.

    A name that is renamed without them is one that they then miss.
    """
    inside = {one.path for one in files if one.path is not None}
    parents = {one.parent for one in files if one.parent is not None} - inside
    found = [path for path in sorted(parents) if opened(path, texts) is None]
    for path in list(others)[:MOST_FILES]:
        if path in inside or path in parents or opened(path, texts) is not None:
            continue
        try:
            text = texts[path] if path in texts else read(path, is_parent=True)
        except (RecipeError, Unreadable):
            continue  # not text, or not there any more
        named = _EXTENDS.search(text)
        if named is not None and (path.parent / named[1]).resolve() in inside:
            found.append(path)
    return found


def names_in(files: list[Opened]) -> list[Occurrence]:
    """Every occurrence of a defined name in files that extend each other."""
    lets, paths, layers = set[str](), set[str](), set[str]()
    for one in files:
        for item in one.file.items:
            match item:
                case ast.Let(name=name):
                    lets.add(name.name)
                case ast.Layers(name=name):
                    layers.add(name.name)
                case ast.Mix(items=inner):
                    paths |= {p.name.name for p in inner if isinstance(p, ast.PathNode)}
    return [each for one in files for each in occurrences(one.file, lets, paths, layers)]


def occurrence_at(found: list[Occurrence], source: Source, offset: int) -> Occurrence | None:
    """The name under the pointer."""
    for one in found:
        if one.span.source is source and one.span.start <= offset <= one.span.stop:
            return one
    return None


def same_name(found: list[Occurrence], as_: Occurrence) -> list[Occurrence]:
    return [one for one in found if (one.kind, one.name) == (as_.kind, as_.name)]


def parent_at(analysis: Analysis, offset: int) -> Path | None:
    """The file that `extends` names, if the pointer is on it."""
    file, folder = analysis.file, analysis.source.folder
    if file is None or file.extends is None or folder is None:
        return None
    span = file.extends.span
    if span.source is not analysis.source or not span.start <= offset <= span.stop:
        return None
    return folder / str(file.extends.value)


def renamed(found: list[Occurrence], one: Occurrence, new: str) -> list[Span]:
    """The places to change. NotRenamed where the new name is none, or means something else."""
    if not NAME.fullmatch(new):
        raise NotRenamed(f"`{new}` is not a name: small letters, digits and `_`")
    if new in STATEMENTS or new in CLAUSES:
        raise NotRenamed(f"`{new}` is a word of the language")
    if any(new in words for words in own_words().values()):
        raise NotRenamed(f"`{new}` is a word of the vocabulary")
    if any(other.name == new and other.name != one.name for other in found):
        raise NotRenamed(f"`{new}` is defined already")
    return [each.span for each in same_name(found, one)]


# -- the outline -------------------------------------------------------------------------------

SYMBOLS = {
    "let": SymbolKind.Constant,
    "layers": SymbolKind.Array,
    "prune": SymbolKind.Function,
    "keep": SymbolKind.Function,
    "mix": SymbolKind.Namespace,
    "path": SymbolKind.Variable,
    "update": SymbolKind.Operator,
    "private": SymbolKind.Operator,
    "loss": SymbolKind.Operator,
    "deploy": SymbolKind.Operator,
    "setting": SymbolKind.Property,
    "condition": SymbolKind.Boolean,
}


def outline(analysis: Analysis) -> list[DocumentSymbol]:
    """The statements of the file, with what is inside of their braces."""
    return [_symbol(analysis, item) for item in analysis.file.items] if analysis.file else []


def _symbol(analysis: Analysis, node: ast.Statement) -> DocumentSymbol:
    from dcil_dsl.lang.fmt import children_of

    kind = kind_of(node)
    whole = analysis.lines.of(node.span)
    text = " ".join(node.span.text.partition("{")[0].split()) or kind
    name = text if isinstance(node, ast.BlockNode | ast.Mix) else text[:80]
    if isinstance(node, ast.Setting):
        name = node.name.name
    return DocumentSymbol(
        name=name,
        kind=SYMBOLS.get(kind, SymbolKind.Struct),
        range=whole,
        selection_range=analysis.lines.range(node.span.start, node.span.start + len(kind))
        if node.span.text.startswith(kind)
        else whole,
        children=[_symbol(analysis, one) for one in children_of(node)],
    )


def folds(analysis: Analysis) -> list[FoldingRange]:
    """Braces over several lines, and runs of comment lines."""
    found, stack = [], []
    lines = analysis.lines
    comments: list[int] = []
    for one in analysis.lexemes:
        row = lines.position(one.start).line
        if one.text == "{":
            stack.append(row)
        elif one.text == "}" and stack:
            first = stack.pop()
            if row > first:
                found.append(FoldingRange(first, row - 1 if row - 1 > first else row))
        elif one.kind == "comment":
            before = analysis.text[lines.starts[row] : one.start]
            if not before.strip():
                comments.append(row)
    found += _runs(comments)
    return sorted(found, key=lambda fold: fold.start_line)


def _runs(rows: list[int]) -> Iterator[FoldingRange]:
    first = None
    for row, after in zip(rows, [*rows[1:], -1], strict=False):
        first = row if first is None else first
        if after != row + 1:
            if row > first:
                yield FoldingRange(first, row, kind=FoldingRangeKind.Comment)
            first = None
