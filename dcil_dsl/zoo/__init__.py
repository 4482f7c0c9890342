"""Where models come from: torchvision, timm, transformers, the user's own code, a few of ours."""

from dcil_dsl.zoo.example import example_inputs
from dcil_dsl.zoo.spec import build_model, network_of, stored_spec
from dcil_dsl.zoo.weights import load_weights

__all__ = ["build_model", "example_inputs", "load_weights", "network_of", "stored_spec"]
