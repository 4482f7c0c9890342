"""The rules of the tree-sitter grammar read every recipe; its queries name what it has.

tree-sitter itself is not run: Node evaluates grammar.js, and Lark reads with its rules.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.literate import cases
from support.sound import completed

from dcil_dsl.diagnostics import RecipeError, Source
from dcil_dsl.lang.parse import parse_text
from dcil_dsl.lang.tokens import literals

lark = pytest.importorskip("lark")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "grammar" / "editors" / "tree-sitter"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node evaluates grammar.js")
# The functions of tree-sitter's grammars; the result is what `tree-sitter generate` starts from.
STUB = """
const rule = (x) => typeof x === "string" ? { type: "STRING", value: x }
  : x instanceof RegExp ? { type: "PATTERN", value: x.source } : x;
const many = (type) => (...all) => ({ type, members: all.map(rule) });
const one = (type) => (x) => ({ type, content: rule(x) });
const ranked = (level, x) => x === undefined ? rule(level) : { ...rule(x), level };
const $ = new Proxy({}, { get: (_, name) => ({ type: "SYMBOL", name }) });
Object.assign(globalThis, {
  seq: many("SEQ"), choice: many("CHOICE"), repeat: one("REPEAT"), optional: one("OPTIONAL"),
  token: one("TOKEN"), field: (_, x) => rule(x),
  prec: Object.assign(ranked, { left: ranked, right: ranked }),
  grammar: (given) => Object.fromEntries(
    Object.entries(given.rules).map(([name, make]) => [name, rule(make($))])),
});
console.log(JSON.stringify(require(process.argv[1])));
"""


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    command = [str(NODE), "-e", STUB, str(FOLDER / "grammar.js")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_terminal(rule: dict[str, Any]) -> bool:
    return rule["type"] == "PATTERN" or rule["type"] == "TOKEN"


def as_lark(rules: dict[str, Any]) -> str:
    def text(rule: dict[str, Any]) -> str:
        match rule["type"]:
            case "STRING":
                return json.dumps(rule["value"])
            case "SYMBOL":
                name = rule["name"]
                return name.upper() if is_terminal(rules[name]) else name
            case "SEQ":
                return "(" + " ".join(map(text, rule["members"])) + ")"
            case "CHOICE":
                return "(" + " | ".join(map(text, rule["members"])) + ")"
            case "REPEAT":
                return f"({text(rule['content'])})*"
            case "OPTIONAL":
                return f"({text(rule['content'])})?"
        raise AssertionError(rule)

    lines = []
    for name, rule in rules.items():
        if is_terminal(rule):
            inner = rule.get("content", rule)
            level = inner.get("level", 0)
            pattern = inner["value"].replace("/", "\\/")
            lines.append(f"{name.upper()}.{level}: /{pattern}/")
        else:
            lines.append(f"{name}: {text(rule)}")
    return "\n".join([*lines, "%ignore COMMENT", "%ignore /[ \\t\\r\\n]+/"])


@pytest.fixture(scope="module")
def parser(rules):
    return lark.Lark(as_lark(rules), parser="lalr", lexer="basic", start="source_file")


def reads(parser, text: str) -> bool:
    try:
        parser.parse(text)
    except lark.exceptions.UnexpectedInput:
        return False
    return True


RECIPES = sorted((ROOT / "recipes").rglob("*.prune"))
BROKEN = [
    pytest.param(completed(case.values[0], whole=True), id=case.id)
    for page in ("syntax.md", "recipe.md", "model.md")
    for case in cases(page)
]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_recipe_is_read(parser, file):
    assert reads(parser, file.read_text())


@pytest.mark.parametrize("text", BROKEN)
def test_what_the_compiler_reads_is_read_and_what_it_does_not_is_not(parser, text):
    try:
        parse_text(Source(text))
        is_sound = True
    except RecipeError as error:
        is_sound = False
        if {one.code for one in error.diagnostics} <= {"E109", "E114"}:
            pytest.skip("the version and the depth are no matter of the grammar")
    assert reads(parser, text) == is_sound


def test_every_word_and_sign_of_the_grammar_is_in_it(rules):
    found = set(re.findall(r'"STRING", "value": "([^"]+)"', json.dumps(rules)))
    assert set(literals().values()) <= found


@pytest.mark.parametrize("query", ["highlights", "folds", "indents"])
def test_a_query_names_rules_fields_and_words_that_exist(rules, query):
    text = re.sub(r"^;.*$", "", (FOLDER / "queries" / f"{query}.scm").read_text(), flags=re.M)
    words = set(re.findall(r'"([^"]+)"', text))
    outside = re.sub(r'"[^"]*"', "", text)
    assert set(re.findall(r"\((\w+)", outside)) <= rules.keys()
    fields = set(re.findall(r"(\w+):", outside))
    assert all(f'field("{name}"' in (FOLDER / "grammar.js").read_text() for name in fields)
    assert words <= set(re.findall(r'"STRING", "value": "([^"]+)"', json.dumps(rules)))
