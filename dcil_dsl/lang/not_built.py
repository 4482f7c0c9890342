"""Words that a later version of the language brings, so that none is taken for a slip.

In:   nothing.
Out:  tables by place: {word: what it will mean}.
Not:  nothing here works. A word leaves its table when its class enters vocabulary.py.
"""

from __future__ import annotations

TARGETS = {
}

SCHEDULES = {
    "exponential": "a ramp that closes a fixed share of the gap each time",
    "steps": "a ramp in a few steps",
    "iterative": "pruning in rounds with training between",
    "cyclic": "a target that goes up and down",
}

SCORES = {
    "snip": "connection sensitivity at the start",
    "synflow": "synaptic flow",
    "fisher": "the Fisher information",
    "hessian": "second-order scores",
    "geometric_median": "distance to the other filters",
}

LOSSES = {
    "mse": "mean squared error",
    "attention_transfer": "equal attention maps",
    "feature": "equal inner activations",
    "cosine_similarity": "equal directions of inner activations",
    "binary_cross_entropy": "one yes or no for each class",
}

OPTIMIZERS = {
    "adam": "Adam with L2 in place of weight decay",
    "sam": "sharpness-aware minimisation",
    "lamb": "LAMB, for large batches",
    "lars": "LARS, for large batches",
    "rmsprop": "RMSprop",
    "muon": "Muon",
}

RATES = {
    "linear": "a straight line",
    "onecycle": "up and down once",
    "polynomial": "a power of what is left",
    "exponential": "a fixed factor each epoch",
}

AUGMENTS = {
    "auto_augment": "AutoAugment",
    "center_crop": "the middle of the image",
    "resize": "another size",
    "rotate": "a random rotation",
    "vflip": "upside down",
}

PRUNE_SETTINGS = {
    "ties": "layers that are pruned alike",
}

TRAIN_SETTINGS = {
    "freeze": "layers that do not train",
    "distill": "a teacher from outside",
}

METRICS = {
    "flops": "multiply-accumulates",
    "params": "a count of weights",
    "latency": "measured time",
    "loss": "the loss on held-out data",
}
