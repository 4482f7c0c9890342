"""Many patterns on many names at once match what Python's `re` matches one by one."""

import re
import warnings
from random import Random

import pytest
from support.resolving import MIX, TRAIN
from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import automaton, loads
from dcil_dsl.lang.automaton import glob_lines, match_all, regex_lines
from dcil_dsl.lang.selectors import Regex
from dcil_dsl.model.layers import Layer, Weight
from dcil_dsl.plan.select import Selection, claim_layers

PIECES = r"""a b . \. [ab] (a) (a|bb) (a)? (a|b.)? a* b+ a{2} a{,2} a{1,3} b? b?? a*? \w \W \s \S
    \d \D ^ $ \A \Z | [^a] [^]a] []a] [^\W] [\w.] [\s\S]* [^b\D] (?:a|b.) (?:ab(?:a|b)?)? .* .*? .+
    [^.]+ 1 - [a-b1] (?i) B [[ab]""".split()
OTHERS = r"""\b \B (?=.a) (?!b) (?<=a) (?P<n>a|b) (a|b)* (?:ab)+ (?:a){2} \x61 \n \1 (?i:A) { {1 {,}
    .*+ (?>a|ab) (?#x) [\x61]""".split()


def random_names(chance, count):
    return ["".join(chance.choices("ab.1-\t\u00e9B", k=chance.randrange(8))) for _ in range(count)]


def beginnings(name):
    """A name, and its beginnings up to each dot."""
    return [name, *(name[: dot.start()] for dot in re.finditer(r"\.", name))]


def expected(pattern, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = re.compile(pattern)
    return sum(
        1 << place
        for place, name in enumerate(names)
        if any(compiled.fullmatch(own) for own in beginnings(name))
    )


def random_expressions(chance, pieces, count):
    for _ in range(count):
        pattern = "".join(chance.choices(pieces, k=chance.randrange(1, 7)))
        if is_valid(pattern):
            yield pattern


def is_valid(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(pattern)
        except re.error:
            return False
    return True


@pytest.mark.parametrize("at_once", [40_000, 20])
def test_what_is_matched_at_once_is_what_python_matches(monkeypatch, at_once):
    monkeypatch.setattr(automaton, "AT_ONCE", at_once)
    chance = Random(5)
    names = random_names(chance, 60)
    lines = {}
    for pattern in random_expressions(chance, [*PIECES, *PIECES, *OTHERS], 3000):
        lines[pattern] = regex_lines(pattern)
        guarded = f"(?!{''.join(chance.choices(PIECES, k=2))}){pattern}"
        if is_valid(guarded):
            lines[guarded] = regex_lines(guarded)
    known = {pattern: own for pattern, own in lines.items() if own is not None}
    found = dict(match_all(known, names))
    assert found == {pattern: expected(pattern, names) for pattern in known}
    assert len(known) > 700 and sum(map(bool, found.values())) > 400
    assert sum(pattern.startswith("(?!") for pattern in known) > 300


def test_expressions_without_repeated_groups_and_looks_are_matched_at_once():
    for pattern in (r"a(b|c(d|e))?\.[0-9]+$", r"(?i)a.{2,4}?b", r"[^\]]\[*", "(?!.*norm)a.*"):
        assert regex_lines(pattern) is not None, pattern
    others = [pattern for pattern in OTHERS if pattern != "(?!b)"]
    for pattern in (
        *others,
        "(?!a)b|c",
        "(?!a|b)c",
        "(?!a)?b",
        "b(?!a)",
        "(?=a).*",
        "a{1000}",
        "(a|b)" * 7,
        "(" * 60 + "a" + ")" * 60,
    ):
        assert regex_lines(pattern) is None, pattern


def test_globs_are_matched_at_once_as_their_translations_are():
    chance = Random(6)
    names = random_names(chance, 60)
    words = {"**": r"[\s\S]*", "*": "[^.]*", "?": "[^.]"}
    signs = ["a", "b", ".", "[", "1", "*", "*", "**", "?"]
    patterns = {"".join(chance.choices(signs, k=chance.randrange(7))) for _ in range(2000)}
    found = dict(match_all({pattern: glob_lines(pattern) for pattern in patterns}, names))
    for pattern, matched in found.items():
        parts = re.findall(r"\*\*+|.", pattern)
        parts = ["**" if part.startswith("**") else part for part in parts]
        translated = "".join(words.get(part, re.escape(part)) for part in parts)
        assert matched == expected(translated, names), pattern


def test_rules_with_patterns_claim_what_a_plain_loop_claims():
    """Rules on names, one by one and in order; every diagnostic that depends on what matches."""
    chance = Random(7)
    letters = ["conv", "norm", "block", "0", "1", "2"]
    paths = sorted({".".join(chance.choices(letters, k=chance.randrange(1, 4))) for _ in range(60)})
    module = nn.Conv2d(2, 2, 1)
    layers = tuple(Layer(path, path, module, (Weight(path, (2, 2)),)) for path in paths)
    pieces = [*letters, r"\.", "[a-z]+", r"\d", "(conv|norm)", "(0|1)?", "o", r"(\.\d)*"]
    pieces += [".*"] * 12
    overridden = unmatched = 0
    for _ in range(150):
        patterns = list(
            dict.fromkeys(
                chance.choice(["", "", "(?!.*norm)"]) + pattern
                for pattern in random_expressions(chance, pieces, chance.randrange(2, 9))
            )
        )
        text = "\n".join(f'prune re"{pattern}" to 50%' for pattern in patterns)
        recipe = loads(f"language 1\n{text}\n{MIX}\n{TRAIN}")
        report = Diagnostics()
        owner = claim_layers(recipe.rules, Selection(layers, "Net", report), report)
        matched = [expected(pattern, paths) for pattern in patterns]
        wanted = {
            path: index
            for index, mask in enumerate(matched)
            for place, path in enumerate(paths)
            if mask >> place & 1
        }
        assert owner == wanted
        codes = sorted((d.code, d.span.line - 2) for d in report.found)
        nothing = [("E301", i) for i, mask in enumerate(matched) if not mask]
        useless = [
            ("W303", i) for i, mask in enumerate(matched) if mask and i not in set(wanted.values())
        ]
        assert codes == sorted([*nothing, *useless])
        unmatched, overridden = unmatched + len(nothing), overridden + len(useless)
    assert unmatched > 100 and overridden > 100


@pytest.mark.parametrize(
    "name",
    [
        '"blocks.{}.part.conv{}"',
        '"**.{}.*.conv{}"',
        r're"blocks\.{}\.(part|other)\.conv{}"',
        r're"(?i).*\.{}\.[a-z]+\.CONV[{}]"',
        r're"[\s\S]*{}.*[^z]?{}"',
    ],
)
def test_the_patterns_of_all_rules_walk_along_the_names_once(monkeypatch, name):
    walks, tries = [], []
    walk = automaton._Machine.walk
    monkeypatch.setattr(
        automaton._Machine, "walk", lambda self, names: walks.append(1) or walk(self, names)
    )
    for method in ("matches", "runs"):
        monkeypatch.setattr(Regex, method, lambda *_: tries.append(1))
    module = nn.Conv2d(2, 2, 1)
    paths = [f"blocks.{i // 4}.part.conv{i % 4}" for i in range(400)]
    layers = tuple(Layer(path, path, module, (Weight(path, (2, 2)),)) for path in paths)
    rules = [f"prune {name.format(i // 4, i % 4)} to 50%" for i in range(400)]
    recipe = loads("language 1\n" + "\n".join(rules) + f"\n{MIX}\n{TRAIN}")
    report = Diagnostics()
    owner = claim_layers(recipe.rules, Selection(layers, "Net", report), report)
    assert set(owner) == set(paths) and not tries and len(walks) <= 1
