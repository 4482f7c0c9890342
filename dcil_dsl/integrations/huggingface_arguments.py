"""The arguments of Hugging Face's Trainer next to a recipe: followed, replaced or refused.

In:   TrainingArguments, what else a Trainer takes, a recipe.
Out:  the arguments as the recipe wants them; InputError for what a recipe cannot be trained with.
Not:  no Trainer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from torch import nn
from transformers import TrainingArguments

from dcil_dsl.diagnostics import InputError
from dcil_dsl.lang.recipe import Recipe

# Arguments for which the recipe's `train` block stands.
UNUSED = (
    "learning_rate",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
)
logger = logging.getLogger(__name__)


def refuse(model: nn.Module, args: TrainingArguments, more: Mapping[str, Any]) -> None:
    """InputError for what would be left out in silence."""
    if getattr(model, "peft_config", None):
        raise InputError(
            "the model has PEFT adapters: they are saved without the weights under them, and "
            "merging them fills pruned weights again",
            help="merge first: model.merge_and_unload()",
        )
    if getattr(getattr(model, "config", None), "return_dict", True) is False:
        raise InputError(
            "config.return_dict is False: a tuple does not say which of its items is the loss",
            help="model.config.return_dict = True",
        )
    if any(part is not None for part in more.get("optimizers") or ()):
        raise InputError(
            "optimizers: they hold the weights of the model that was given, and others train",
            help="the recipe's `optimizer` and `lr`; or override create_optimizer, where self.model"
            " is what trains",
        )
    if more.get("optimizer_cls_and_kwargs") is not None:
        raise InputError("optimizer_cls_and_kwargs: the optimizer is the recipe's")
    if more.get("model_init") is not None:
        raise InputError("model_init: a plan is made for one model", help="pass `model`")
    if more.get("compute_loss_func") is not None:
        raise InputError("compute_loss_func: the losses are the recipe's", help="use its `loss`")
    if args.label_smoothing_factor:
        raise InputError(
            "label_smoothing_factor: the losses are the recipe's",
            help="`loss cross_entropy(sparse, smoothing=0.1)` in the recipe",
        )
    for name in ("fsdp", "deepspeed"):
        if getattr(args, name, None):
            raise InputError(f"{name}: masks need whole weights; use DDP (torchrun)")
    for name, why in {
        "auto_find_batch_size": "the plan counts the steps of one batch size",
        "neftune_noise_alpha": "its noise goes into the embeddings of a plain model",
        "use_liger_kernel": "the model is compiled before its layers would be replaced",
    }.items():
        if getattr(args, name, None):
            raise InputError(f"{name} is not supported: {why}", help="leave it out")
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs in one process: nn.DataParallel cannot hold a Dual",
            help="start one process for each GPU with torchrun",
        )


def follow(recipe: Recipe, args: TrainingArguments) -> None:
    """Have the arguments say what the recipe says of accumulation and precision."""
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(args)
    }
    unused = list(UNUSED) if recipe.train.clip is None else [*UNUSED, "max_grad_norm"]
    unused = [n for n in unused if n in defaults and getattr(args, n) not in (defaults[n], None)]
    if unused:
        logger.warning(
            "not used, the recipe's `train` stands for it: %s of the arguments", ", ".join(unused)
        )
    own = recipe.train.accumulate
    if own > 1:
        if args.gradient_accumulation_steps not in (1, own):
            raise InputError(
                f"gradient_accumulation_steps is {args.gradient_accumulation_steps}, "
                f"`accumulate` of the recipe is {own}"
            )
        args.gradient_accumulation_steps = own
    if recipe.train.precision in ("bf16", "fp16") and not (args.bf16 or args.fp16):
        setattr(args, recipe.train.precision, True)
        os.environ["ACCELERATE_MIXED_PRECISION"] = recipe.train.precision
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True  # a phase may leave a path out


def take_checkpointing(args: TrainingArguments) -> bool:
    """Whether activations are to be computed again: of a Dual, that is for its compiler to do."""
    asked = False
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        asked |= bool(getattr(args, name, False))
        if getattr(args, name, None):
            setattr(args, name, False)
    return asked
