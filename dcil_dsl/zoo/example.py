"""Example inputs: one batch that a model takes, from what the model says of itself.

In:   a model of torchvision, timm or transformers, or any that takes a batch of images.
Out:  Inputs: random images, clips, pairs of frames, token numbers or spectrograms of the right
      shape; with labels where a model that brings its own loss is to be trained.
Not:  no data: the values mean nothing. Labels are of class 1 or random token numbers.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from dcil_dsl.model.inputs import Inputs

IMAGE_SIZE = 224  # pixels, of a model that does not say
CLIP_FRAMES = 16
NUM_TOKENS = 12


def example_inputs(
    model: nn.Module, batch: int = 2, size: int | None = None, labels: bool = False, seed: int = 0
) -> Inputs:
    """A batch of `batch` examples, the same for the same seed; the caller's generator is untouched.

    size    the side of images in pixels; None: what the model was made for, else 224
    labels  also what the model needs to compute its own loss, where it has one
    """
    draw = _Draw(batch, seed)
    if takes_keywords(model):
        return Inputs(kwargs=_transformers(model, draw, size, labels))
    home = type(model).__module__
    if home.startswith("torchvision.models.detection"):
        return _detection(model, draw, size, labels)
    if home.startswith("torchvision.models.optical_flow"):
        frames = (3, size or 128, size or 128)  # RAFT's fourth scale has no fewer than 16 pixels
        return Inputs((draw.image(*frames), draw.image(*frames)))
    channels, side = image_shape(model)
    side = size or side
    if home.startswith("torchvision.models.video"):
        return Inputs((draw.image(channels, CLIP_FRAMES, side, side),))
    return Inputs((draw.image(channels, side, side),))


def takes_keywords(model: nn.Module) -> bool:
    """Whether it is a model of transformers, whose inputs go by their names."""
    return hasattr(model, "main_input_name") and hasattr(model, "config")


def takes_one_image(model: nn.Module) -> bool:
    """Whether a batch of images by itself is what the model takes."""
    if takes_keywords(model):
        return model.main_input_name == "pixel_values" and not _is_video(model.config)
    other = ("detection", "optical_flow", "video")
    return not type(model).__module__.startswith(
        tuple(f"torchvision.models.{kind}" for kind in other)
    )


def image_shape(model: nn.Module) -> tuple[int, int]:
    """Channels and side in pixels: timm's `pretrained_cfg`, a configuration, or `image_size`."""
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", None) or config
    timm = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" in timm:
        return timm["input_size"][0], timm["input_size"][-1]
    side = getattr(config, "image_size", None) or getattr(model, "image_size", None) or IMAGE_SIZE
    if isinstance(side, (list, tuple)):
        side = side[-1]
    return getattr(config, "num_channels", 3), side


class _Draw:
    """Random tensors of `batch` examples from a generator of its own."""

    def __init__(self, batch: int, seed: int):
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)

    def image(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator)

    def numbers(self, below: int, *shape: int, start: int = 0) -> Tensor:
        start = min(start, below - 1)
        return torch.randint(start, below, (self.batch, *shape), generator=self.generator)


# -- torchvision ---------------------------------------------------------------------------------


def _detection(model: nn.Module, draw: _Draw, size: int | None, labels: bool) -> Inputs:
    """Images in a list, and for training a list of what is on each: two boxes of class 1."""
    side = size or 320
    images = list(draw.image(3, side, side).sigmoid())
    if not labels:
        return Inputs((images,))
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.4, 0.9, 0.9]]) * side
    target = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64)}
    heads = getattr(model, "roi_heads", None)
    if heads is not None and heads.has_mask():
        masks = torch.zeros(2, side, side, dtype=torch.uint8)
        for mask, box in zip(masks, boxes.long(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        target["masks"] = masks
    if heads is not None and heads.has_keypoint():
        num_points = heads.keypoint_predictor.kps_score_lowres.out_channels
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        seen = torch.ones(2, num_points, 1)
        target["keypoints"] = torch.cat([middle[:, None].expand(2, num_points, 2), seen], 2)
    return Inputs((images, [{k: v.clone() for k, v in target.items()} for _ in images]))


# -- transformers --------------------------------------------------------------------------------


def _transformers(model: nn.Module, draw: _Draw, size: int | None, labels: bool) -> dict:
    config, kind = model.config, type(model).__name__
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = inspect.signature(model.forward).parameters
    longest = getattr(text, "max_position_embeddings", None) or NUM_TOKENS
    length = min(NUM_TOKENS, longest) if longest > 0 else NUM_TOKENS  # XLNet: -1, as long as may be
    inputs: dict[str, object] = {}
    if "input_features" in named:
        mels = getattr(config, "num_mel_bins", 80)
        frames = 2 * getattr(config, "max_source_positions", 50)
        inputs["input_features"] = draw.image(mels, frames)
    elif "input_values" in named:
        inputs["input_values"] = draw.image(4000)  # a quarter of a second at 16 kHz
    elif "input_ids" in named:
        inputs["input_ids"] = _tokens(text, draw, length)
        if "attention_mask" in named:
            mask = torch.ones(draw.batch, length, dtype=torch.int64)
            mask[1:, -2:] = 0  # a padded batch, as tokenizers give it
            inputs["attention_mask"] = mask
    if "pixel_values" in named:
        channels, side = image_shape(model)
        frames = (config.num_frames,) if _is_video(config) else ()
        inputs["pixel_values"] = draw.image(*frames, channels, size or side, size or side)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in named:
        inputs["decoder_input_ids"] = _tokens(text, draw, length)
    if "use_cache" in named:
        inputs["use_cache"] = False  # of use to generation, not to training
    if labels:
        inputs |= _labels(model, kind, named, inputs, draw)
    return inputs


def _labels(model: nn.Module, kind: str, named, inputs: dict, draw: _Draw) -> dict:
    config = model.config
    if "return_loss" in named:
        return {"return_loss": True}
    if "start_positions" in named:
        return {name: draw.numbers(4) for name in ("start_positions", "end_positions")}
    if "labels" not in named:
        return {}
    if kind.endswith(("ObjectDetection", "ForSegmentation")):
        box = torch.tensor([[0.4, 0.4, 0.3, 0.3]])
        one = {"class_labels": torch.ones(1, dtype=torch.int64), "boxes": box}
        return {"labels": [dict(one) for _ in range(draw.batch)]}
    if kind.endswith("SemanticSegmentation"):
        return {"labels": draw.numbers(config.num_labels, *inputs["pixel_values"].shape[-2:])}
    if kind.endswith("TokenClassification"):
        return {"labels": draw.numbers(config.num_labels, inputs["input_ids"].shape[1])}
    if "Classification" in kind:
        return {"labels": draw.numbers(config.num_labels)}
    spoken = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    text = config.get_text_config()
    labels = {"labels": _tokens(text, draw, spoken.shape[1])}
    if "next_sentence_label" in named:
        labels["next_sentence_label"] = draw.numbers(2)
    return labels


def _tokens(config, draw: _Draw, length: int) -> Tensor:
    """Token numbers that are none of the first few, which mean padding, start and end."""
    return draw.numbers(config.vocab_size, length, start=5)


def _is_video(config) -> bool:
    return getattr(config, "num_frames", None) is not None
