"""Models of more libraries for the coverage table, each with its own switch for checkpoints.

In:   nothing; a library is imported when a case of it is built.
Out:  libraries(), checkpointed(): "library/name" -> Case.
Not:  nothing is downloaded. ultralytics is under the AGPL: it is measured here and nowhere used.

A library that is not installed is recorded as failed, with the name of what is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

import torch
from coverage_case import Case
from torch import nn

from dcil_dsl.model.inputs import Inputs

IMAGE = (64,)


def _of(place: str, *args, **kwargs) -> Callable[[], nn.Module]:
    """A call of "package.module:function", when it is asked for."""

    def make() -> nn.Module:
        module, _, name = place.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return make


def _yolo(config: str) -> Callable[[], nn.Module]:
    return _of("ultralytics.nn.tasks:DetectionModel", config, nc=10, verbose=False)


def _adapted() -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=120,
        num_key_value_heads=2,
    )
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj"]))


def _wrapper() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=4)
    return TransformerWrapper(num_tokens=120, max_seq_len=32, attn_layers=layers)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _words() -> torch.Tensor:
    return torch.randint(0, 120, (2, 12), generator=torch.Generator().manual_seed(0))


def _given(**kwargs) -> Callable[[], Inputs]:
    return lambda: Inputs((), {k: v() if callable(v) else v for k, v in kwargs.items()})


def _placed(*values) -> Callable[[], Inputs]:
    return lambda: Inputs(tuple(v() if callable(v) else v for v in values))


def _noisy(side: int = 32, channels: int = 3) -> Callable[[], Inputs]:
    return _given(
        sample=lambda: _random(2, channels, side, side), timestep=lambda: torch.tensor([1, 9])
    )


def _edges() -> torch.Tensor:
    return torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])


def _graph() -> Callable[[], Inputs]:
    return _given(x=lambda: _random(6, 16), edge_index=_edges)


UNET = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CONDITIONED = UNET | {
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
AUTOENCODER = {
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
CLIP_TEXT = {"context_length": 16, "vocab_size": 120, "width": 32, "heads": 4, "layers": 2}
CLIP_IMAGE = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}


def libraries() -> dict[str, Case]:
    def case(make, inputs=None, sides=IMAGE, **more) -> Case:
        return Case("", sides=sides, make=make, inputs=inputs, **more)

    found = {
        "diffusers/UNet2DModel": case(_of("diffusers:UNet2DModel", **UNET), _noisy()),
        "diffusers/UNet2DConditionModel": case(
            _of("diffusers:UNet2DConditionModel", **CONDITIONED),
            _given(
                sample=lambda: _random(2, 4, 32, 32),
                timestep=lambda: torch.tensor([1, 9]),
                encoder_hidden_states=lambda: _random(2, 5, 16),
            ),
        ),
        "diffusers/AutoencoderKL": case(
            _of("diffusers:AutoencoderKL", **AUTOENCODER),
            _given(sample=lambda: _random(2, 3, 32, 32)),
        ),
        "segmentation_models_pytorch/Unet": case(
            _of("segmentation_models_pytorch:Unet", "resnet18", encoder_weights=None)
        ),
        "segmentation_models_pytorch/FPN": case(
            _of("segmentation_models_pytorch:FPN", "mobilenet_v2", encoder_weights=None)
        ),
        "segmentation_models_pytorch/Segformer": case(
            _of("segmentation_models_pytorch:Segformer", "resnet18", encoder_weights=None)
        ),
        "monai/UNet": case(_of("monai.networks.nets:UNet", 2, 3, 3, (8, 16, 32), (2, 2))),
        "monai/SwinUNETR": case(
            _of("monai.networks.nets:SwinUNETR", 3, 3, feature_size=12, spatial_dims=2)
        ),
        "monai/UNETR": case(
            _of(
                "monai.networks.nets:UNETR",
                3,
                3,
                IMAGE * 2,
                spatial_dims=2,
                hidden_size=48,
                mlp_dim=64,
                num_heads=4,
            )
        ),
        "open_clip/CLIP": case(
            _of("open_clip.model:CLIP", 16, CLIP_IMAGE, CLIP_TEXT),
            _given(
                image=lambda: _random(2, 3, 32, 32),
                text=lambda: _words().new_full((2, 16), 7),
            ),
        ),
        "torchaudio/Conformer": case(
            _of("torchaudio.models:Conformer", 16, 4, 32, 2, 7),
            _given(input=lambda: _random(2, 20, 16), lengths=lambda: torch.tensor([20, 14])),
        ),
        "torchaudio/ConvTasNet": case(
            _of("torchaudio.models:ConvTasNet", 2, 16, 32, 3, 16, 32, 2, 2),
            _placed(lambda: _random(2, 1, 400)),
        ),
        "torch_geometric/GCN": case(_of("torch_geometric.nn.models:GCN", 16, 16, 2, 10), _graph()),
        "torch_geometric/GAT": case(_of("torch_geometric.nn.models:GAT", 16, 16, 2, 10), _graph()),
        "x_transformers/TransformerWrapper": case(_wrapper, _placed(_words)),
        "peft/LoRA of Llama": case(_adapted, _given(input_ids=_words)),
    }
    for config in ("yolov8n.yaml", "yolo11n.yaml"):
        found[f"ultralytics/{config[:-5]}"] = case(_yolo(config))
    for name in ("resnet10", "shufflenetv2_wd2", "igcv3_wd4", "revnet38"):
        make = _of("pytorchcv.model_provider:get_model", name)
        found[f"pytorchcv/{name}"] = case(make, sides=(224,))
    return found


def checkpointed(cases: dict[str, Case]) -> dict[str, Case]:
    """A model of each family that can compute its activations again, with that turned on."""
    chosen = (
        "timm/vision_transformer",
        "timm/convnext",
        "timm/swin_transformer",
        "transformers/BertForSequenceClassification",
        "transformers/LlamaForCausalLM",
        "transformers/GPT2LMHeadModel",
        "transformers/T5ForConditionalGeneration",
        "diffusers/UNet2DModel",
        "diffusers/UNet2DConditionModel",
        "diffusers/AutoencoderKL",
        "open_clip/CLIP",
        "peft/LoRA of Llama",
    )
    found = {f"{name}, checkpoints": replace(cases[name], checkpoints=True) for name in chosen}
    densenet = cases["torchvision classification/densenet121"]
    options = densenet.options | {"memory_efficient": True}
    densenet = replace(densenet, options=options)
    found["torchvision classification/densenet121, checkpoints"] = densenet
    found["monai/SwinUNETR, checkpoints"] = replace(
        cases["monai/SwinUNETR"],
        make=_of(
            "monai.networks.nets:SwinUNETR",
            3,
            3,
            feature_size=12,
            spatial_dims=2,
            use_checkpoint=True,
        ),
    )
    return found
