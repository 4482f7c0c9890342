"""What differs between two recipes: settings by their names, statements whole."""

from pathlib import Path

import pytest

import dcil_dsl as dcil
from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.lang.changes import recipe_changes

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BASE = """language 1
recipe base { title = "a" }
data digits { batch_size = 64 }
prune Conv2d to global(80%) { schedule = cubic(0ep..70% run) }
keep last Linear
mix {
  path sparse = masked
  path dense = full { size = 50% }
  update kept by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss 0.5 * cross_entropy(dense) from 2ep
  deploy sparse
}
train {
  epochs = 8ep
  optimizer = sgd(lr=0.02, momentum=0.9)
}
expect { sparsity >= 79% }
"""
CASES = {
    ("epochs = 8ep", "epochs = 2ep"): ["~ train.epochs: 8ep -> 2ep"],
    ("global(80%)", "global(90%)"): ["~ prune Conv2d: global(80%) -> global(90%)"],
    ("cubic(0ep..70% run)", "once(at=1ep)"): [
        "~ prune Conv2d.schedule: cubic(0ep..70% run) -> once(at=1ep)"
    ],
    ("kept by sparse", "kept by dense"): ["~ update kept: sparse -> dense"],
    ("path sparse = masked", "path sparse = full"): ["~ path sparse: masked -> full"],
    ("size = 50%", "size = 25%"): ["~ path dense.size: 50% -> 25%"],
    ("deploy sparse", "deploy dense"): ["~ deploy: sparse -> dense"],
    (">= 79%", "> 50%"): ["~ expect sparsity: >= 79% -> > 50%"],
    ("data digits", "data synthetic"): ["~ data: digits -> synthetic"],
    ("keep last Linear\n", ""): ["- keep last Linear"],
    ("train {", "train {\n  clip = 1"): ["+ train.clip = 1"],
    (" from 2ep", ""): [
        "- loss 0.5 * cross_entropy(dense) from 2ep",
        "+ loss 0.5 * cross_entropy(dense)",
    ],
    ("keep last", "prune Conv2d to 10%\nkeep last"): ["+ prune Conv2d (2) to 10%"],
}


@pytest.mark.parametrize("change", CASES)
def test_a_difference_is_named_by_its_setting(change):
    assert recipe_changes(BASE, BASE.replace(*change)) == CASES[change]


def test_titles_comments_spaces_and_order_do_not_differ():
    moved = (
        BASE.replace("data digits { batch_size = 64 }\n", "") + "data digits { batch_size=64 }\n"
    )
    assert recipe_changes(BASE, "# new\n" + moved.replace('"a"', '"b"')) == []


def test_a_text_that_is_not_a_recipe_is_refused():
    with pytest.raises(RecipeError):
        recipe_changes(BASE, "language 1\nprune {")


def test_every_recipe_equals_itself_and_differs_from_the_next():
    texts = [dcil.load(path).text for path in sorted(RECIPES.rglob("*.prune"))]
    assert not any(recipe_changes(text, text) for text in texts)
    assert all(recipe_changes(*pair) for pair in zip(texts, texts[1:]) if pair[0] != pair[1])


def test_a_recipe_knows_its_parent_closed_and_its_difference(tmp_path):
    (tmp_path / "base.prune").write_text(
        BASE.replace("8ep", "n").replace("data", "let n = 8ep\ndata")
    )
    (tmp_path / "child.prune").write_text(
        'language 1\nextends "base.prune"\ntrain { epochs = 2ep }\n'
    )
    recipe = dcil.load(tmp_path / "child.prune", overrides={"train.clip": "1"})
    assert "let" not in recipe.parent and "epochs    = 8ep" in recipe.parent
    assert recipe_changes(recipe.parent, recipe.text) == [
        "~ train.epochs: 8ep -> 2ep",
        "+ train.clip = 1",
    ]
    assert dcil.load(tmp_path / "base.prune").parent == ""
