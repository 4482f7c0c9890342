"""The grammars of editors know the words of the language, and read every recipe."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from pygments.token import Error, Keyword
from support.literate import cases
from support.sound import completed
from support.toml import tomllib

from dcil_dsl.integrations.pygments_lexer import PruneLexer
from dcil_dsl.lang.statements import CLAUSES, STATEMENTS
from dcil_dsl.lang.tokens import literals

ROOT = Path(__file__).parents[2]
EDITORS = ROOT / "grammar" / "editors"
RECIPES = sorted((ROOT / "recipes").rglob("*.prune"))
BROKEN = [
    pytest.param(completed(case.values[0], whole=True), id=case.id)
    for page in ("syntax.md", "recipe.md")
    for case in cases(page)
]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_pygments_finds_no_error_in_a_recipe(file):
    tokens = list(PruneLexer().get_tokens(file.read_text()))
    assert "".join(text for _, text in tokens) == file.read_text()
    assert [text for kind, text in tokens if kind in Error] == []


@pytest.mark.parametrize("text", BROKEN)
def test_pygments_loses_nothing_of_a_broken_recipe(text):
    given = text.rstrip("\n") + "\n"
    assert "".join(one for _, one in PruneLexer().get_tokens(given)) == given


def test_pygments_marks_every_word_of_the_grammar():
    for word in (*STATEMENTS, *CLAUSES):
        (kind, text), *_ = PruneLexer().get_tokens(f"{word} x")
        assert kind in Keyword and text == word


def test_the_package_declares_the_lexer_to_pygments():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "pygments.lexers"
    ]
    assert points == {"prune": f"{PruneLexer.__module__}:PruneLexer"}


def words_of(pattern: str) -> set[str]:
    return {word for group in re.findall(r"\(\?:([a-z|]+)\)", pattern) for word in group.split("|")}


def test_the_textmate_grammar_has_the_words_of_the_language():
    grammar = json.loads((EDITORS / "vscode" / "syntaxes" / "prune.tmLanguage.json").read_text())
    patterns = {
        one["name"]: one["match"]
        for one in grammar["repository"]["code"]["patterns"]
        if "name" in one
    }
    constants = words_of(patterns["constant.language.prune"])
    clauses = words_of(patterns["keyword.other.clause.prune"])
    assert words_of(patterns["keyword.control.prune"]) == STATEMENTS.keys()
    assert constants | clauses == CLAUSES.keys()
    assert STATEMENTS.keys() | CLAUSES.keys() == {w for w in literals().values() if w.isalpha()}


def test_the_rules_for_sublime_text_are_those_of_textmate_and_match_every_recipe():
    """Read as both editors read them: at each place the first rule that matches."""
    folder = EDITORS / "sublime"
    script = runpy.run_path(str(folder / "draw.py"))
    grammar = json.loads(script["SOURCE"].read_text())
    text = (folder / "prune.sublime-syntax").read_text()
    assert script["text_of"](grammar) == text
    found = re.findall(r"- match: (.*)\n(?:      scope: (.*))?", text)
    rules = [(re.compile(json.loads(match)), scope) for match, scope in found]
    assert len(rules) > 20
    for file in RECIPES:
        for line in file.read_text().splitlines():
            place = 0
            while place < len(line):
                hits = [(rule.search(line, place), scope) for rule, scope in rules]
                first = min((hit.start() for hit, _ in hits if hit), default=None)
                if first is None:
                    break
                hit, scope = next(one for one in hits if one[0] and one[0].start() == first)
                assert "invalid" not in scope, (file, line)
                place = hit.end()


def test_the_files_of_the_extension_are_json_and_name_each_other():
    folder = EDITORS / "vscode"
    package = json.loads((folder / "package.json").read_text())
    contributes = package["contributes"]
    (language,), (grammar,) = contributes["languages"], contributes["grammars"]
    assert (folder / language["configuration"]).is_file()
    assert (folder / grammar["path"]).is_file() and (folder / package["main"]).is_file()
    settings = contributes["configuration"]["properties"]
    code = (folder / "extension.js").read_text()
    assert [s for s in settings if f'"{s.removeprefix("dcil.")}"' not in code] == []
    restricted = package["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"]
    assert restricted == ["dcil.model", "dcil.command"]


def test_no_built_file_is_in_the_repository():
    built = {"node_modules", "src", "build"}
    files = subprocess.run(
        ["git", "ls-files", str(EDITORS)], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    assert not [f for f in files if built & set(Path(f).parts) or f.endswith((".vsix", ".wasm"))]
