"""What holds for every test."""

import sys
from pathlib import Path

import torch

# The tests' networks are so small that threads would spend their time waiting for each other.
torch.set_num_threads(1)

sys.path.insert(0, str(Path(__file__).parent))  # for `import golden`


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden from what is printed now"
    )
