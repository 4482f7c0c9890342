"""The tests that need a GPU: collected where torch finds one, or where DCIL_TEST_DEVICE names a
device ("cpu" runs all but what only a GPU has, to try the tests themselves)."""

import os

import pytest
import torch

NAME = os.environ.get("DCIL_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else None)
collect_ignore_glob = [] if NAME else ["test_*.py"]
if NAME == "cpu":
    collect_ignore_glob = ["test_cuda_*.py"]


@pytest.fixture
def device():
    """The device, with float32 products in float32."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(NAME)
    torch.backends.cudnn.allow_tf32 = tf32
