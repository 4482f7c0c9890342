"""Where models come from: torchvision, timm, the user's own code, and a few of ours."""

from dcil_dsl.zoo.spec import build_model
from dcil_dsl.zoo.weights import load_weights

__all__ = ["build_model", "load_weights"]
