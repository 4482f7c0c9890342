"""`DcilTrainer`: a recipe inside Hugging Face's Trainer (`pip install 'dcil-dsl[hf]'`).

In:   a transformers model, a recipe, TrainingArguments and the data sets that a Trainer takes.
Out:  a Trainer that trains the two paths, evaluates the sparse model, resumes, and saves a folder
      that `from_pretrained` loads without this package.
Not:  no loop: Trainer's own runs. Masks, losses of paths and penalties, which it does not know, are
      computed in callbacks and in compute_loss.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dcil_dsl.compiler.checkpoint_activations import recompute_activations
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics import InputError
from dcil_dsl.integrations.huggingface_arguments import follow, refuse, take_checkpointing
from dcil_dsl.jobs.prepare import read_recipe
from dcil_dsl.jobs.pruner import Pruner
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.sparsity import SparsityError, check_sparsity, masks_step
from dcil_dsl.words.losses import CrossEntropy
from dcil_dsl.words.tensors.outputs import IGNORED, counted_positions, own_loss

STATE = "dcil_state.pt"  # in a checkpoint folder: what resumes the two paths
RECIPE, SPARSITY = "recipe.prune", "sparsity.json"
CARD_MARK = "<!-- made by dcil: remove this line to keep your changes -->"
logger = logging.getLogger(__name__)


class DcilTrainer(Trainer):
    """A transformers.Trainer that prunes as a recipe says.

        trainer = DcilTrainer(model=bert, recipe="bert.prune", args=args, train_dataset=train,
                              eval_dataset=held_out)
        trainer.train()
        trainer.save_model("out")  # AutoModel.from_pretrained("out") needs no dcil

    The recipe says what is pruned, the losses, the optimizer and its rate, clipping, `ema`,
    `accumulate` and `precision`; the arguments say the rest. Where an argument was set to another
    value than its default and than the recipe's, the number of epochs is the argument's and the
    optimizer the recipe's, with a warning. `loss model(path)` is the model's own loss on that
    path; it is averaged over all tokens of a step, as Trainer averages it.

    recipe     a Recipe, a Path, the name of a file, or the text of a recipe
    overrides  as of dcil.load
    teachers   as of dcil.resolve

    Evaluation, `predict` and `compute_metrics` see the plain sparse model. Only checkpoints that
    have the recipe's sparsity compete for the best model.

    Raises RecipeError; InputError for what it cannot serve, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: str | Path | Recipe,
        args: TrainingArguments | None = None,
        *,
        overrides: Mapping[str, str] | None = None,
        teachers: Mapping[str, nn.Module] | None = None,
        **more: Any,
    ) -> None:
        if model is None:
            raise InputError("DcilTrainer needs a model: model_init is not supported")
        args = TrainingArguments("tmp_trainer") if args is None else args
        recomputes = take_checkpointing(args)
        checked = read_recipe(recipe, overrides or {})
        refuse(model, args, more)
        follow(checked, args)
        self.optimizer: Any
        self.lr_scheduler: Any
        super().__init__(model=model, args=args, **more)
        if self.train_dataset is None:
            raise InputError("DcilTrainer needs a train_dataset: it makes the plan for its batches")
        self._set_signature_columns_if_needed()  # of the plain model's forward
        self._given, self._plain_class = model, type(model).__name__
        checked = self._with_epochs(checked)
        example = self._example()
        self.pruner = Pruner(
            checked,
            model,
            steps_per_epoch=self._steps_per_epoch(),
            example_inputs=example,
            scaler=self.accelerator.scaler,  # the arguments may ask for fp16 as well
            teachers=teachers,
        )
        self.plan = self.pruner.plan
        self._loss_shifts_labels = _shifts_labels(model, example)
        if self._loss_shifts_labels:
            _refuse_unshifted(self.plan)
        if recomputes:
            recompute_activations(self.pruner.dual)
        if self.plan.train.clip is not None:
            args.max_grad_norm = self.plan.train.clip
        self.recipe_text = checked.given or checked.text
        self.model: nn.Module = self.pruner.dual
        self.model_wrapped: nn.Module = self.pruner.dual
        self.callback_handler.model = self.model
        self.model_accepts_loss_kwargs = True  # the loss below is the mean over the whole step
        self.add_callback(_Steps(self))

    # -- the plan --------------------------------------------------------------------------

    def _with_epochs(self, recipe: Recipe) -> Recipe:
        """The recipe with the number of epochs that the arguments ask for, where they do."""
        default, asked = 3.0, self.args.num_train_epochs
        own = recipe.train.epochs.value
        if self.args.max_steps > 0:
            asked = math.ceil(self.args.max_steps / self._steps_per_epoch())
        elif asked == default or asked == own:
            self.args.num_train_epochs = own
            return recipe
        if asked != int(asked):
            raise InputError(
                f"num_train_epochs is {asked}: a plan has a whole number of epochs",
                help="use a whole number, or the recipe's own epochs (leave it out)",
            )
        if 0 < self.args.max_steps < asked * self._steps_per_epoch():
            logger.warning(
                "max_steps=%d ends training within epoch %d: the plan has %d steps",
                self.args.max_steps,
                asked,
                asked * self._steps_per_epoch(),
            )
        if asked == own:
            return recipe
        logger.warning("the arguments ask for %d epochs, the recipe for %d", asked, own)
        changed = {**dict(recipe.overrides), "train.epochs": f"{int(asked)}ep"}
        return read_recipe(recipe.given, changed)

    def _steps_per_epoch(self) -> int:
        try:
            size = len(self.train_dataset)
        except TypeError:  # Trainer asks for max_steps then
            return self.args.max_steps
        batch = self.args.train_batch_size * self.args.world_size
        batches = size // batch if self.args.dataloader_drop_last else math.ceil(size / batch)
        return max(math.ceil(batches / self.args.gradient_accumulation_steps), 1)

    def _example(self) -> dict[str, Any]:
        """One small batch, as the training loader collates it: no random number is drawn."""
        collate, data = self.data_collator, self.train_dataset
        if type(data).__module__.startswith("datasets."):
            data = self._remove_unused_columns(data, description="example")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="example")
        if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
            rows = list(islice(iter(data), 2))
        else:
            rows = [data[i] for i in range(min(2, len(data)))]
        with torch.random.fork_rng(devices=[]):
            return self._prepare_inputs(dict(collate(rows)))

    # -- one step --------------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **more: Any
    ) -> Any:
        """Trainer's own, once: a second run would begin at the sparsity of the first one's end.

        The model that was given has the sparse network's weights afterwards.
        """
        if self.pruner.steps and not resume_from_checkpoint:
            raise InputError(
                f"this trainer has trained {self.pruner.steps} steps already",
                help="DcilTrainer(model=trainer.sparse(), ...) begins again with its weights; "
                "resume_from_checkpoint=True continues a run that was cut short",
            )
        result = super().train(resume_from_checkpoint, *args, **more)
        if not self.is_finished():
            logger.warning("the model that was given has not reached the recipe's sparsity")
        self._given.load_state_dict(self.sparse().state_dict())
        return result

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The recipe's losses in training; in evaluation the sparse model's own."""
        plain = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if not isinstance(plain, Dual):
            outputs = model(**inputs)
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
            return (loss, outputs) if return_outputs else loss
        self.pruner.begin()
        outputs = model(**inputs)
        loss = self.pruner.loss(outputs, self._get_targets(inputs), counted_positions(inputs))
        if num_items_in_batch is None:
            loss = loss / self.current_gradient_accumulation_steps
        else:  # the mean over the items of the whole step, whichever batch they are in
            loss = loss * self._get_own_items(inputs) / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, outputs[self.plan.deploy]) if return_outputs else loss

    def _get_targets(self, inputs: dict[str, Any]) -> Tensor | None:
        """The label of each position; that of the next one where the model's loss shifts them."""
        labels: Tensor | None = inputs.get("labels")
        if labels is None or not self._loss_shifts_labels:
            return labels
        return pad(labels[..., 1:], (0, 1), value=IGNORED)

    def _get_own_items(self, inputs: dict[str, Any]) -> Tensor:
        targets = self._get_targets(inputs)
        assert targets is not None
        return targets.ne(IGNORED).sum()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Tensor | None:
        """The items of a whole step, of all processes where losses are averaged over them."""
        if not batch_samples or not isinstance(batch_samples[0].get("labels"), Tensor):
            return None
        items = torch.stack([self._get_own_items(batch) for batch in batch_samples])
        items = items.sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return items

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        self.loss_is_scaled_for_ga = True  # compute_loss has done it
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except (AttributeError, KeyError, TypeError) as error:
            if type(self).compute_loss is DcilTrainer.compute_loss:
                raise
            paths = ", ".join(self.plan.phases[self.pruner.dual.phase].paths)
            raise InputError(
                f"compute_loss of {type(self).__name__}: {type(error).__name__}: {error}; in "
                f"training the model takes the labels and returns its outputs by path ({paths})",
                help="super().compute_loss(model, inputs) is the recipe's loss; "
                f'model(**inputs)["{self.plan.deploy}"] is what the deployed path returns',
            ) from error

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer."""
        if self.optimizer is None:
            self.optimizer = self.pruner.make_optimizer()
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The recipe's learning rate."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = self.pruner.make_scheduler(
                getattr(optimizer, "optimizer", optimizer)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # -- evaluation --------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **more: Any) -> Any:
        """Trainer's own loop, on the plain sparse model."""
        with self._sparse_model():
            return super().evaluation_loop(*args, **more)

    @contextmanager
    def _sparse_model(self) -> Iterator[None]:
        kept = self.model, self.model_wrapped, list(self.accelerator._models)
        self.model = self.model_wrapped = self.sparse()
        try:
            yield
        finally:
            self.model, self.model_wrapped, self.accelerator._models = kept

    def sparse(self) -> nn.Module:
        """The plain model of the deployed path as it is now, at whatever sparsity."""
        return self.pruner.export(unfinished=True).eval()

    def is_finished(self) -> bool:
        """Whether the masks have the sparsity of the recipe's end."""
        try:
            check_sparsity(self.pruner.dual, masks_step(self.plan.num_steps))
        except SparsityError:
            return False
        return True

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Only a model at the recipe's sparsity can become the best one."""
        return self.is_finished() and super()._determine_best_metric(metrics, trial)

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        super().log({**logs, "sparsity": round(self.pruner.sparsity, 6)}, *args, **more)

    # -- files ---------------------------------------------------------------------------------

    def save_model(
        self,
        output_dir: str | None = None,
        _internal_call: bool = False,
        *,
        unfinished: bool = False,
    ) -> None:
        """The sparse model under `from_pretrained`'s names, with the recipe, `sparsity.json` and a
        model card. SparsityError where the recipe's sparsity is not reached, unless `unfinished`;
        a checkpoint of the loop may have any."""
        output_dir = self.args.output_dir if output_dir is None else output_dir
        in_checkpoint = Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        finished = self.is_finished()
        if not (finished or unfinished or in_checkpoint):
            self.pruner.export()  # raises, with each layer that is short
        state = self.pruner.state_dict() if in_checkpoint else None  # every process takes part
        if self.args.should_save:
            kept = self.model
            self.model = self.sparse()
            try:
                self._save(output_dir)
            finally:
                self.model = kept
            self._write_sparsity(Path(output_dir), finished)
            if state is not None:
                torch.save(state, Path(output_dir) / STATE)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _write_sparsity(self, folder: Path, finished: bool) -> None:
        layers = {
            name: 1 - int(mask.sum()) / max(mask.numel(), 1)
            for name, mask in self.pruner.dual.masks.items()
        }
        facts = {
            "sparsity": self.pruner.sparsity,
            "finished": finished,
            "step": self.pruner.steps,
            "steps": self.plan.num_steps,
            "recipe_sha256": self.plan.recipe.sha256,
            "dcil": version("dcil-dsl"),
            "layers": layers,
        }
        (folder / SPARSITY).write_text(json.dumps(facts, indent=2) + "\n")
        (folder / RECIPE).write_text(self.recipe_text)
        if _may_write_card(folder):
            (folder / "README.md").write_text(self._card(facts))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer's own copies the files that it knows from the checkpoint to the output folder."""
        if self.is_world_process_zero():
            for name in (RECIPE, SPARSITY, "README.md"):
                if name != "README.md" or _may_write_card(Path(self.args.output_dir)):
                    shutil.copy(Path(checkpoint_folder) / name, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _card(self, facts: dict[str, Any]) -> str:
        name = self.plan.recipe.title or self.plan.recipe.name
        state = "" if facts["finished"] else " (training has not reached the recipe's sparsity)"
        rows = "".join(f"| `{n}` | {share:.2%} |\n" for n, share in facts["layers"].items())
        return (
            "---\nlibrary_name: transformers\ntags:\n- pruning\n- sparse\n- dcil\n---\n"
            f"{CARD_MARK}\n\n# {name}\n\n"
            f"A `{self._plain_class}` with {facts['sparsity']:.2%} of the weights that its rules "
            f"prune set to zero{state}.\n\nIt loads with `from_pretrained` like any "
            f"other model. `{RECIPE}` is the pruning recipe, `{SPARSITY}` the sparsity of each "
            f"layer.\n\n| layer | zeros |\n|---|---|\n{rows}"
        )

    def create_model_card(self, *args: Any, **more: Any) -> None:
        """Keep the card that save_model wrote: Trainer's own says nothing of the pruning."""
        if self.is_world_process_zero() and not Path(self.args.output_dir, "README.md").exists():
            super().create_model_card(*args, **more)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """The two paths of a checkpoint of this recipe."""
        path = Path(resume_from_checkpoint) / STATE
        if not path.is_file():
            raise InputError(
                f"{resume_from_checkpoint} has no {STATE}: it is not a checkpoint of a DcilTrainer"
            )
        device = next(self.pruner.dual.parameters()).device
        self.pruner.load_state_dict(torch.load(path, map_location=device, weights_only=True))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Steps(TrainerCallback):
    """The events of a step that Trainer has and a recipe needs."""

    def __init__(self, trainer: DcilTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.trainer.pruner.steps = state.global_step
        self.trainer.pruner.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.trainer.pruner.prepare_update(self.trainer.optimizer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.trainer.pruner.finish_step()


def _may_write_card(folder: Path) -> bool:
    """Whether there is no model card, or one of ours: with the sparsity of an earlier save."""
    card = folder / "README.md"
    return not card.exists() or CARD_MARK in card.read_text(encoding="utf-8", errors="replace")


@torch.no_grad()
def _shifts_labels(model: nn.Module, example: Mapping[str, Any]) -> bool:
    """Whether the model's own loss compares each position with the label of the next one.

    The first label then counts for nothing, whatever it is; else the loss changes with it. Names
    do not say so: BartForCausalLM shifts no labels, and GPT2DoubleHeadsModel does.
    """
    labels = example.get("labels")
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return False
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return False
    losses, modes = [], {part: part.training for part in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            for label in (0, 1):
                torch.manual_seed(0)
                first = torch.full_like(labels, IGNORED)
                first[:, 0] = label
                losses.append(own_loss(model(**{**example, "labels": first})))
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, InputError):
        return _shifts_by_name(model)  # no loss of this kind; what is wrong the training step says
    finally:
        for part, mode in modes.items():
            part.training = mode
    zero, one = losses
    return bool(torch.isclose(zero, one, rtol=0, atol=0, equal_nan=True))


def _shifts_by_name(model: nn.Module) -> bool:
    shifts = LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss
    return shifts or type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _refuse_unshifted(plan: Plan) -> None:
    """InputError for `cross_entropy` on a causal language model, whose labels are not shifted: each
    position would learn to repeat its own token."""
    for loss in plan.losses:
        if isinstance(loss.term, CrossEntropy):
            raise InputError(
                f"`{loss.name}` compares each position with its own token: the labels of a causal "
                "language model are not shifted",
                help="`loss model(path)` is the model's own loss, which shifts them",
            )
