"""A job of seconds: a small recipe, a network of two convolutions, and the program called here.

In:   a folder in which tiny.prune and net.py lie.
Out:  the texts of both; the arguments of the main job; the status that `dcil` ends with; a run.
Not:  no test.
"""

import pytest

from dcil_dsl.cli import commands as cli
from dcil_dsl.zoo import build_model

RECIPE = """language 1

recipe tiny { title = "two layers" }

let target = 90%

model net { classes = 10 }

data synthetic {
  batch_size = 64
  image_size = 32
}

prune Conv2d to global(target) {
  schedule = linear(0ep..1ep)
  refresh  = 2 steps
}

mix {
  path sparse = masked
  path dense  = full

  update kept   by sparse
  update pruned by dense

  private BatchNorm2d
  private last Linear { init = fresh }

  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2) from 1ep

  deploy sparse
}

train {
  epochs    = 2ep
  optimizer = sgd(lr=0.05, momentum=0.9, nesterov=true)
  lr        = cosine()
}

expect { sparsity >= 89% }
"""

NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
        )


def two_classes():
    return Net(2)
"""


def job(folder, model="net.py:Net"):
    return [
        "compile",
        str(folder / "tiny.prune"),
        "--model",
        f"{folder}/{model}",
        "--train",
        "synthetic",
        "--device",
        "cpu",
    ]


def own(folder, model="net.py:Net"):
    """What a verb needs to be told before it runs somebody's own code."""
    return ["--model", f"{folder}/{model}"]


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        cli.app(args=list(map(str, arguments)), prog_name="dcil")
    return end.value.code


def whole_run(folder, seed=0):
    """Write a recipe and a model, do the main job, and give back the folder: its run is run/."""
    (folder / "tiny.prune").write_text(RECIPE)
    (folder / "net.py").write_text(NET)
    asked = ("--seed", seed) if seed else ()
    assert call(*job(folder), "--out", folder / "run", *asked) == 0
    return folder


def short_run(folder):
    """Write a recipe and a model, train two steps, and give back the folder: its run is run/."""
    (folder / "tiny.prune").write_text(RECIPE)
    (folder / "net.py").write_text(NET)
    assert call(*job(folder), "--out", folder / "run", "--max-steps", "2", "--quiet") == 0
    return folder


def net(folder):
    return build_model(f"{folder}/net.py:Net", 10)
