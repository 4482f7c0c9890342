"""What holds for every test."""

import sys
from pathlib import Path

import torch

# The tests' networks are so small that threads would spend their time waiting for each other.
torch.set_num_threads(1)

# Tests of several processes fork and train, which autograd refuses once it has threads for devices.
# It counts the devices at the first backward pass of a process, and torch.export makes it count
# one on a machine that has none; so the first pass is here.
torch.ones((), requires_grad=True).backward()

sys.path.insert(0, str(Path(__file__).parent))  # for `support`, what tests share


# What runs in under a minute on one core: `pytest -m fast`.
FAST = ("lang", "errors", "model", "test_house.py", "test_packaging.py", "test_package.py")
SLOW = ("test_endless.py", "test_robust.py", "test_dependencies.py")


def pytest_collection_modifyitems(items):
    for item in items:
        own = Path(item.fspath).relative_to(Path(__file__).parent)
        if own.parts[0] in FAST and own.name not in SLOW:
            item.add_marker("fast")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden from what is printed now"
    )
