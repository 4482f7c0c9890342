"""`dcil.train` takes its options as one value, as keywords, or as both."""

from __future__ import annotations

import warnings

import pytest
import tiny_job

import dcil_dsl as dcil

SHORT = tiny_job.RECIPE.replace("2ep", "1ep").replace("0ep..1ep", "0ep..50% run")
SHORT = SHORT.replace(" from 1ep", "")


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "net.py").write_text(tiny_job.NET)
    return f"{tmp_path}/net.py:Net"


def test_a_keyword_replaces_the_field_of_the_options(tmp_path, spec):
    options = dcil.RunOptions(out=tmp_path / "run", device="cpu", seed=4, max_steps=3)
    run = dcil.train(dcil.loads(SHORT), spec, "synthetic", options, max_steps=1)
    assert run.path == tmp_path / "run" and run.result.step == 1 and run.plan.train.seed == 4


def test_resuming_anyway_resumes(tmp_path, spec):
    options = dcil.RunOptions(out=tmp_path / "run", device="cpu", max_steps=1)
    dcil.train(dcil.loads(SHORT), spec, "synthetic", options)
    run = dcil.train(
        dcil.loads(SHORT), spec, "synthetic", options, seed=1, anyway=True, max_steps=2
    )
    assert run.result.step == 2 and run.plan.train.seed == 1


@pytest.mark.parametrize("field", ["resume", "anyway"])
def test_resuming_needs_the_folder_of_the_run(spec, field):
    with pytest.raises(dcil.InputError, match="--resume needs the folder of the run"):
        dcil.train(dcil.loads(SHORT), spec, "synthetic", **{field: True})


def test_a_warning_about_the_recipe_points_at_the_line_that_called_dcil(tmp_path, spec):
    """A freeze after the end of the run is legal, and does nothing."""
    text = SHORT.replace("refresh  = 2 steps", "refresh  = 2 steps\n  freeze   = 100ep")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dcil.train(
            dcil.loads(text), spec, "synthetic", out=tmp_path / "run", device="cpu", max_steps=1
        )
    found = [one for one in caught if issubclass(one.category, dcil.RecipeWarning)]
    assert found and {one.filename for one in found} == {__file__}
