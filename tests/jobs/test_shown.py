"""Recipe, Plan and Run print on a screen, and as HTML in a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sound import completed
from support.tiny_run import tiny_plan, tiny_train

from dcil_dsl.jobs.prepare import assumes_size
from dcil_dsl.jobs.train import Run
from dcil_dsl.lang import loads

ROOT = Path(__file__).parent.parent.parent


def test_a_recipe_prints_as_one_line_and_as_its_text_in_a_notebook():
    recipe = loads((ROOT / "recipes" / "quickstart.prune").read_text(), folder=ROOT / "recipes")
    assert len(repr(recipe)) < 100 and "paths sparse, dense" in repr(recipe)
    html = recipe._repr_html_()
    assert (
        html.startswith("<pre style=")
        and "monospace" in html
        and "deploy" in html
        and "<-" not in html
    )


def test_a_plan_prints_as_one_line_and_shows_what_the_verb_prints(capsys):
    plan = tiny_plan()
    assert repr(plan) == str(plan) == "<Plan tiny: 2 of 2 layers pruned, 20 steps>"
    plan.show()
    printed = capsys.readouterr().out
    assert "conv2" in printed and "80%" in printed
    assert "monospace" in plan._repr_html_() and "conv2" in plan._repr_html_()


def test_a_run_prints_as_one_line_and_shows_its_table(tmp_path, capsys):
    result, _, folder = tiny_train(tmp_path / "run", max_steps=5)
    run = Run(folder, tiny_plan(), result)
    assert "\n" not in repr(run) and "sparse top1 " in repr(run)
    assert "step 5 of 20" in repr(run)
    run.show()
    assert "sparsity measured" in capsys.readouterr().out
    assert "sparsity measured" in run._repr_html_()


@pytest.mark.parametrize(
    "data, is_assumed",
    [
        ("", True),
        ("data digits { batch_size = 8 }", False),
        ("data mine { image_size = 32 }", False),
        ("data mine { augment = [random_resized_crop(96)] }", False),
        ("data mine { batch_size = 8 }", True),
    ],
)
def test_the_size_of_images_is_assumed_where_nothing_says_it(data, is_assumed):
    assert assumes_size(loads(completed(f"prune Conv2d to 90%\n{data}"))) == is_assumed
