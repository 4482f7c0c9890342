"""`dcil bench RECIPE` writes the profile that the recipe's own rule reads. No time is asserted."""

import json

import pytest
from support.tiny_job import call

NET = """from torch import nn

def net(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    )
"""
RECIPE = """language 1
data digits { image_size = 8  channels = 3 }
prune Conv2d to speedup(SPEED, profile="speed.json")
mix { path sparse = masked  loss cross_entropy(sparse)  deploy sparse }
train { epochs = 1ep  optimizer = sgd(lr=0.1) }
"""


@pytest.fixture
def given(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "x.prune").write_text(RECIPE.replace("SPEED", "2"))
    return tmp_path / "x.prune", "--model", f"{tmp_path}/net.py:net"


def test_the_profile_of_a_recipe_is_what_its_target_reads(given, tmp_path, capsys):
    recipe, file = given[0], tmp_path / "speed.json"
    assert call("bench", *given, "--levels", "50%,90%", "--rounds", "1", "--json", file) == 0
    out = capsys.readouterr().out
    assert "2 layers pruned alike" in out and "times as fast" in out
    profile = json.loads(file.read_text())
    assert profile["levels"] == [0.0, 0.5, 0.9] and profile["layers"] == {
        "0.weight": 216,
        "2.weight": 576,
    }
    # The times of a real machine may not reach a speed: these do.
    profile |= {"seconds": [4.0, 3.0, 1.0], "dense": {"torch": 4.0}}
    file.write_text(json.dumps(profile))
    assert call("plan", *given) == 0
    assert "70%" in capsys.readouterr().out  # 2 s lie in the middle of 3 s at 50% and 1 s at 90%
    recipe.write_text(RECIPE.replace("SPEED", "9"))
    assert call("plan", *given) == 1
    assert "the profile reaches 1000 ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, told",
    [
        (("--engines", "torch"), "--engines is of runs"),
        (("--path", "sparse"), "--path is of runs"),
        (("--batch-sizes", "1,2"), "one batch size"),
        (("--levels", "150%"), "not a percentage"),
    ],
)
def test_what_a_recipe_does_not_take_is_refused(given, more, told, capsys):
    assert call("bench", *given, *more) == 2
    assert told in capsys.readouterr().err


def test_what_only_a_recipe_takes_is_refused_for_a_run(tmp_path, capsys):
    assert call("bench", tmp_path, "--levels", "50%") == 2
    assert "--levels is of recipes" in capsys.readouterr().err
    assert call("bench", "x.prune") == 2
    assert "--model SPEC" in capsys.readouterr().err
