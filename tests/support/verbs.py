"""All verbs of the program on one recipe, for a run of a few steps.

In:   the name of a recipe that comes with dcil, a model, a data set, a folder.
Out:  the run folder, after plan, compile, eval, verify, export and sensitivity have ended well.
Not:  no test.
"""

import json

from support.tiny_job import call


def all_verbs(recipe, model, data, folder, *more):
    """more: `--set` and other options of the training."""
    out, named = folder / "run", ["--model", model, "--train", data]
    assert call("check", recipe) == 0
    assert call("plan", recipe, "--model", model) == 0
    assert call("compile", recipe, *named, "--out", out, "--device", "cpu", "--quiet", *more) == 0
    assert call("eval", out, "--device", "cpu") == 0
    assert call("verify", out) == 0
    assert call("export", out, "--to", "pth", "--out", folder / "x.pth") == 0
    profile = folder / "profile.json"
    options = ["--batches", "1", "--levels", "50%", "--device", "cpu", "--json", profile]
    assert call("sensitivity", out, *options) == 0
    return out, json.loads(profile.read_text())


def metrics_of(run):
    """{path: {metric: value}} of a finished run."""
    return json.loads((run / "report.json").read_text())["result"]["accuracies"]
