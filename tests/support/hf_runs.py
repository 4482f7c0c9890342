"""Small transformers of random weights, rows of tokens, and a DcilTrainer of them.

In:   recipes as texts; settings of TrainingArguments.
Out:  BERT, GPT-2, data sets, trainers.
Not:  no test.
"""

import torch

from support.library import needed
from support.two_paths import two_paths

transformers = needed("transformers")
needed("accelerate")
from dcil_dsl.integrations.huggingface import DcilTrainer  # noqa: E402

BERT = two_paths(
    """prune Linear in "bert.encoder" to 80% {
  schedule = cubic(0% run..60% run)
  {more}
}
pruning { refresh = 2 steps }""",
    train="epochs = 3ep\n  optimizer = adamw(lr=0.003)\n  {train}",
    loss="model",
)
GPT = BERT.replace('Linear in "bert.encoder"', 'Conv1D in "transformer.h"')


def text(source=BERT, train="", more=""):
    return source.replace("{train}", train).replace("{more}", more)


def bert(seed=0):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0.1,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2(seed=0):
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


class Rows(torch.utils.data.Dataset):
    """Token numbers whose first one is the class; and a column that no model takes."""

    def __init__(self, num=48, causal=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 50, (num, 8), generator=generator)
        self.labels = torch.randint(0, 3, (num,), generator=generator)
        self.ids[:, 0] = self.labels
        self.causal = causal

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        labels = self.ids[i] if self.causal else self.labels[i]
        return {
            "input_ids": self.ids[i],
            "attention_mask": torch.ones(8, dtype=torch.long),
            "labels": labels,
            "comment": i,
        }


def arguments(folder, **more):
    settings = {
        "per_device_train_batch_size": 8,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 1,
        "save_strategy": "no",
        "logging_steps": 2,
        "use_cpu": True,
    }
    return transformers.TrainingArguments(str(folder), **{**settings, **more})


def trainer_of(folder, recipe=None, model=None, train=None, held_out=None, more=None, **args):
    return DcilTrainer(
        model=model or bert(),
        recipe=recipe or text(),
        args=arguments(folder, **args),
        train_dataset=train or Rows(),
        eval_dataset=held_out or Rows(16, seed=1),
        **(more or {}),
    )
