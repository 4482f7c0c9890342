"""What works without the libraries of the extra `train`, and what an installation of less says.

Each script runs in a process of its own, in which the missing modules cannot be imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_job import NET, RECIPE

from dcil_dsl.diagnostics.optional import TRAINING

ROOT = Path(__file__).parent.parent
MISSING = f"import sys; sys.modules.update(dict.fromkeys({list(TRAINING)}))\n"
# What Python has on Linux and not on Windows, of all that the package uses.
WINDOWS = """import os, signal, sys
import lark, networkx, pydantic, regex, rich, safetensors.torch, torch, torchvision, typer
import torchmetrics, torch.utils.tensorboard, torch.distributed, torch._dynamo, typer.rich_utils
sys.modules["fcntl"] = None
for name in ("SIGHUP", "SIGCHLD", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
for name in ("register_at_fork", "O_DIRECTORY", "O_NOFOLLOW", "getuid", "sched_getaffinity"):
    delattr(os, name)
"""
INSTALL = "pip install 'dcil-dsl[train]'"
CALL = """
from dcil_dsl.cli.commands import main
sys.argv = ["dcil", *{words!r}]
main()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def run(folder, code):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=env
    )


def call(folder, before, *words):
    return run(folder, before + CALL.format(words=words))


@pytest.mark.parametrize("before", [MISSING, WINDOWS], ids=["without train", "Windows"])
@pytest.mark.parametrize(
    "words",
    [
        ("check", "tiny.prune"),
        ("check", "tiny.prune", "--model", "net.py:Net"),
        ("plan", "tiny.prune", "--model", "net.py:Net"),
        ("compile", "tiny.prune", "--model", "net.py:Net"),
    ],
    ids=["check", "check of a model", "plan", "compile"],
)
def test_the_compilers_verbs_run_on_a_model_of_ones_own(folder, before, words):
    done = call(folder, before, *words)
    assert done.returncode == 0, done.stderr


LOOP = """
import torch, dcil_dsl as dcil
from net import Net
x = torch.randn(4, 3, 32, 32)
pruner = dcil.Pruner("tiny.prune", Net(), steps_per_epoch=8, example_inputs=(x,))
optimizer = pruner.make_optimizer()
for _ in range(pruner.plan.num_steps):
    loss = pruner.step_loss(x, target=torch.arange(4))
    optimizer.zero_grad()
    loss.backward()
    pruner.step(optimizer)
sparse = pruner.export()
assert type(sparse) is Net and pruner.sparsity > 0.4
torch.save(sparse.state_dict(), "sparse.pt")
"""


@pytest.mark.parametrize("before", [MISSING, WINDOWS], ids=["without train", "Windows"])
def test_a_loop_of_ones_own_trains_and_exports(folder, before):
    done = run(folder, before + LOOP)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (
            ("compile", "tiny.prune", "--model", "net.py:Net", "--train", "synthetic"),
            "--train needs torchvision, pillow, scikit-learn, torchmetrics, tensorboard",
        ),
        (("plan", "tiny.prune", "--model", "torchvision:resnet18"), "torchvision is not installed"),
    ],
    ids=["--train", "a model of torchvision"],
)
def test_a_verb_that_needs_the_extra_says_how_to_install_it(folder, words, fact):
    done = call(folder, MISSING, *words)
    assert done.returncode == 2 and fact in done.stderr and INSTALL in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("statement", "fact"),
    [
        ("dcil.train('tiny.prune', 'net.py:Net', 'synthetic')", "training needs torchvision"),
        ("dcil.evaluate_run('runs/x')", "an evaluation needs torchvision"),
    ],
)
def test_a_function_that_needs_the_extra_says_how_to_install_it(folder, statement, fact):
    code = (
        "import dcil_dsl as dcil\n"
        f"try:\n    {statement}\n"
        "except dcil.InputError as error:\n    print(error, error.help)\n"
    )
    done = run(folder, MISSING + code)
    assert done.returncode == 0, done.stderr
    assert fact in done.stdout and INSTALL in done.stdout


ONE = "import sys; sys.modules['tensorboard'] = None\n"


def test_one_library_that_is_missing_is_named_alone(folder):
    done = call(
        folder, ONE, "compile", "tiny.prune", "--model", "net.py:Net", "--train", "synthetic"
    )
    assert "--train needs tensorboard, which is not installed" in done.stderr


# -- Windows: a stand-in on this system ------------------------------------------------------------

ALL = """
import importlib, pkgutil, dcil_dsl
for found in pkgutil.walk_packages(dcil_dsl.__path__, "dcil_dsl."):
    if ".integrations." not in found.name and not found.name.endswith("__main__"):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # a library of the extra
            if error.name not in ("pygls", "lsprotocol", "lsprotocol.types"):
                raise
"""


def test_every_module_can_be_imported_on_windows(folder):
    done = run(folder, WINDOWS + ALL)
    assert done.returncode == 0, done.stderr


def test_training_on_windows_is_refused_in_one_sentence(folder):
    done = call(
        folder, WINDOWS, "compile", "tiny.prune", "--model", "net.py:Net", "--train", "synthetic"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "training needs the file locks of Linux or macOS" in done.stderr
    assert "WSL" in done.stderr and not (folder / "runs").exists()
