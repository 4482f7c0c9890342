"""`dcil fmt`: the same recipe, the same comments, one text."""

import re
from pathlib import Path
from random import Random

import pytest
from support.ast_generator import random_file

from dcil_dsl.diagnostics.source import Source
from dcil_dsl.lang import load, loads
from dcil_dsl.lang.build import build_file
from dcil_dsl.lang.fmt import WIDTH, format_text, in_order, print_file
from dcil_dsl.lang.parse import parse_text

HERE = Path(__file__).parent
RECIPES = sorted((HERE / "../../recipes").rglob("*.prune"))
CANONICAL = [*sorted((HERE / "identity").glob("*.prune")), *RECIPES]
# One token, units included: what no white space may be put into.
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+|% run|%|:\d+|ep| steps?)?"
TOKEN = re.compile(rf'(?:re)?"[^"]*"|{NUMBER}|[A-Za-z_]\w*|[=<>!]=|\.\.|\S')


def read(text):
    return build_file(parse_text(Source(text)))


def comments(text):
    return sorted(comment for _, comment in read(text).comments)


def scattered(text, seed):
    """The same tokens with random white space and comments between them."""
    random, pieces = Random(seed), []
    for number, token in enumerate(TOKEN.findall(text)):
        comment = random.choice([f"  # c{number}\n", f"\n\n# d{number} \r\n"])
        gap = random.choice([" ", " ", " ", "\n", "\n\n\n", comment, comment])
        pieces += [token, gap]
    return "".join(pieces)


@pytest.mark.parametrize("path", CANONICAL, ids=lambda path: path.name)
def test_a_canonical_text_stays_as_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert format_text(text) == text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_closed_text_of_a_recipe_is_the_same_recipe(path):
    recipe = load(path)
    assert loads(recipe.text) == recipe


def test_what_is_printed_parses_to_the_tree_it_was_printed_from():
    for seed in range(300):
        file = random_file(seed)
        assert read(print_file(file)) == file, seed


def test_formatting_twice_changes_nothing():
    for seed in range(150):
        once = format_text(scattered(print_file(random_file(seed)), seed))
        assert format_text(once) == once, seed


def test_white_space_and_comments_do_not_change_what_is_said():
    for seed in range(150):
        file = random_file(seed)
        assert read(format_text(scattered(print_file(file), seed))) == file, seed


def test_no_comment_is_lost_or_doubled():
    for seed in range(150):
        text = scattered(print_file(random_file(seed)), seed)
        assert comments(format_text(text)) == comments(text), seed


def test_blocks_come_in_their_order_and_rules_keep_theirs():
    text = 'language 1 train { epochs = 1ep } keep "b" let x = 1 prune "a" to 90% model m'
    rules, train = 'keep  "b"\nprune "a" to 90%', "train { epochs = 1ep }"
    assert format_text(text) == f"language 1\n\nlet x = 1\n\nmodel m\n\n{rules}\n\n{train}\n"
    assert read(format_text(text)).items == in_order(read(text))


def test_comments_move_with_what_they_stand_before():
    text = "language 1\n# of train\ntrain {}  # behind\n# of a\nlet a = 1\n# last\n"
    train = f"{'train {}':<38}# behind"
    lines = ["language 1", "", "# of a", "let a = 1", "", "# of train", train, "# last"]
    assert format_text(text).splitlines() == lines


def test_a_comment_inside_a_statement_moves_above_it():
    text = "language 1\n\nlet a = [1,  # one\n  2]  # two\n"
    assert format_text(text) == f"language 1\n\n# one\n{'let a = [1, 2]':<38}# two\n"


def test_a_comment_keeps_an_empty_block_open():
    text = "language 1\n\ntrain { # why\n\n\n  # and what\n\n}\n"
    assert format_text(text) == f"language 1\n\n{'train {':<38}# why\n  # and what\n}}\n"


def test_long_lists_are_broken_after_commas():
    names = ", ".join(f'"layer{number}.0.conv1"' for number in range(8))
    first, second = format_text(f"language 1 let names = [{names}]").splitlines()[2:]
    assert first.endswith(",") and second.startswith('    "') and len(first) <= WIDTH


def test_one_unit_has_one_spelling():
    text = "language 1 let a = 5 epochs let b = 1steps let c = 16step let d = 75%  run"
    lines = format_text(text).splitlines()[2:]
    assert lines == ["let a = 5ep", "let b = 1 step", "let c = 16 steps", "let d = 75% run"]


def test_parentheses_stay_where_they_mean_something():
    text = "language 1\n\nlet a = (1 - (2 - 3)) * -(4 + 5)..((6 * 7))\n"
    assert format_text(text).splitlines()[2] == "let a = (1 - (2 - 3)) * -(4 + 5)..6 * 7"
