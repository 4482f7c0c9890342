"""Two runs of one recipe at two targets, made once."""

import pytest
from support.tiny_job import call, job, whole_run


@pytest.fixture(scope="package")
def two_runs(tmp_path_factory):
    """The folder of run/ (90%) and of other/ (50%, another seed)."""
    folder = whole_run(tmp_path_factory.mktemp("report"))
    recipe = folder / "tiny.prune"
    recipe.write_text(recipe.read_text().replace("sparsity >= 89%", "sparsity >= 40%"))
    again = [*job(folder), "--set", "target=50%", "--seed", "3", "--quiet"]
    assert call(*again, "--out", folder / "other") == 0
    return folder
