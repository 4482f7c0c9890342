"""Small models of three libraries, compiled, against two plain copies of each.

What is compared, and how, is benchmarks/coverage_one.py: outputs, losses, every gradient and the
statistics, over a step in training mode and one in evaluation mode. A tenth of the layers is kept
out of the rule, and the norm of one weight leaves the model early.
"""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torchvision.models import DenseNet

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
cases = importlib.import_module("coverage_models")
measure = importlib.import_module("coverage_one").measure

FROM_TRANSFORMERS = (
    "BertForSequenceClassification",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "ViTForImageClassification",
    "WhisperForConditionalGeneration",
    "CLIPModel",
)
# They decide by sizes and types alone, and are traced to the last operation.
TRACED = tuple(name for name in FROM_TRANSFORMERS if "Whisper" not in name)
SMALL = {name: cases.Case(f"hf:{name}", cases.TRANSFORMERS[name]) for name in FROM_TRANSFORMERS}
SMALL |= {
    # The library's own miniatures: patches and attention, scaled weights, groups, gates.
    "vision_transformer": cases.Case("timm:test_vit", {"img_size": 32}, (32,)),
    "nfnet": cases.Case("timm:test_nfnet", {}, (64,)),
    "byobnet": cases.Case("timm:test_byobnet", {}, (64,)),
    "mambaout": cases.Case("timm:test_mambaout", {}, (64,)),
    "detection": cases.Case("torchvision:ssdlite320_mobilenet_v3_large", {}, (64,)),
    "segmentation": cases.Case("torchvision:lraspp_mobilenet_v3_large", {}, (32,)),
}


CHECKPOINTS = (
    {
        f"hf:{name}": replace(SMALL[name], checkpoints=True)
        for name in ("BertForSequenceClassification", "LlamaForCausalLM")
    }
    | {
        f"timm:{name}": replace(SMALL["nfnet"], spec=f"timm:{name}", checkpoints=True)
        for name in ("test_convnext", "test_efficientnet")
    }
    | {
        "timm:test_vit": replace(SMALL["vision_transformer"], checkpoints=True),
        "densenet": cases.Case(
            "",
            sides=(64,),
            make=lambda: DenseNet(8, (2, 2), 8, memory_efficient=True, num_classes=10),
        ),
    }
)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_model_whose_checkpoints_are_on_has_the_gradients_of_two_forwards(name):
    record = measure(CHECKPOINTS[name], float64_below=1e9)
    assert record["status"] == "exact", record
    if name != "densenet":  # which asks whether an input has a gradient
        assert record["whole"]["modules"] == 0, record["whole"]


@pytest.mark.parametrize("name", SMALL)
def test_a_model_of_a_library_has_the_gradients_of_two_forwards(name):
    record = measure(SMALL[name], float64_below=1e9)
    assert record["status"] == "exact", record
    assert record["dtype"] == "float64"
    if name in TRACED:
        assert record["whole"]["modules"] == 0
