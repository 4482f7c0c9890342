"""The statements of a recipe: how each is written, and what it says in a sentence.

In:   nothing.
Out:  STATEMENTS, which `dcil explain` and editors show.
Not:  no grammar (prune.lark), and no settings (words/blocks.py).
"""

from __future__ import annotations

from typing import NamedTuple


class Statement(NamedTuple):
    """form: how it is written. says: one sentence. page: of docs/language."""

    form: str
    says: str
    page: str


STATEMENTS = {
    "language": Statement(
        "language 1", "The version of the language; the first statement of every file.", "index.md"
    ),
    "extends": Statement(
        'extends "parent.prune"',
        "Starts from another recipe: settings are merged by name, `let` and `layers` replaced, "
        "rules appended, `mix` and `expect` replaced as a whole.",
        "composing.md",
    ),
    "recipe": Statement(
        'recipe NAME { title = "..." }',
        "Names the recipe. `uses` lists the packages whose words it knows.",
        "index.md",
    ),
    "let": Statement(
        "let NAME = VALUE",
        "Names a value. `--set NAME=VALUE` replaces it on the command line.",
        "composing.md",
    ),
    "layers": Statement("layers NAME = SELECTOR", "Names a set of layers.", "values.md"),
    "model": Statement(
        "model NAME { classes = 10 }",
        "Names the model that the recipe was written for. Other settings are options of its "
        "builder.",
        "training.md",
    ),
    "data": Statement(
        "data NAME { batch_size = 128 }",
        "Names the data, with the batch size, the image size and the augmentations.",
        "training.md",
    ),
    "pruning": Statement(
        "pruning { schedule = linear(0ep..75% run) }",
        "The settings that every `prune` rule starts from.",
        "rules.md",
    ),
    "prune": Statement(
        "prune SELECTOR to TARGET { SETTINGS }",
        "Prunes this share of the weights of the selected layers. Of all rules that match a layer "
        "the last one wins.",
        "rules.md",
    ),
    "keep": Statement(
        "keep SELECTOR",
        "Excludes the selected layers from pruning. Of all rules that match a layer the last one "
        "wins.",
        "rules.md",
    ),
    "mix": Statement(
        "mix { path ... update ... loss ... deploy ... }",
        "Declares the paths, which weights learn from which path, and the losses.",
        "mix.md",
    ),
    "path": Statement(
        "path NAME = VIEW",
        "Declares a run of the model on every batch, with one view of the weights.",
        "mix.md",
    ),
    "update": Statement(
        "update PARTS by PATH",
        "Says from which path the kept, the pruned or the remaining weights take their gradients. "
        "`from` and `until` limit it in time.",
        "mix.md",
    ),
    "private": Statement(
        "private SELECTOR",
        "Gives each path its own copy of the selected modules, such as batch norms.",
        "mix.md",
    ),
    "loss": Statement(
        "loss NUMBER * TERM from TIME until TIME",
        "Adds a term to the training loss.",
        "mix.md",
    ),
    "deploy": Statement("deploy PATH", "Names the path that is evaluated and exported.", "mix.md"),
    "train": Statement(
        "train { epochs = 10ep optimizer = sgd(lr=0.1) }",
        "The length of the run, the optimizer and the learning rate.",
        "training.md",
    ),
    "expect": Statement(
        "expect { top1 >= 92% }",
        "What the author claims of the finished run; `dcil eval` checks it.",
        "training.md",
    ),
}
# Words inside of statements that are not statements: what each one says.
CLAUSES = {
    "to": "The target follows: `prune SELECTOR to TARGET`.",
    "by": "The paths that give the gradients follow: `update kept by sparse`.",
    "from": "The first moment at which the statement holds: `from 25% run`.",
    "until": "The moment from which the statement no longer holds: `until 10ep`.",
    "except": "The layers that follow are left out: `Conv2d except first Conv2d`.",
    "in": 'Only the layers inside this part of the model: `Conv2d in "layer1"`.',
    "where": "Only the layers whose attributes are so: `Conv2d where groups == 1`.",
    "and": "A further condition of `where`.",
    "first": "The first layers in execution order: `first 2 Conv2d`.",
    "last": "The last layers in execution order: `last Linear`.",
    "true": "A setting that is on.",
    "false": "A setting that is off.",
    "none": "No value: the setting as if it were not given.",
}
# The parts of the weights that `update` names.
PARTS_SAY = {
    "kept": "The weights that the masks keep.",
    "reserve": "The best of the pruned weights, the share that the setting `reserve` gives.",
    "pruned": "The weights that the masks prune.",
    "rest": "All weights that no rule prunes.",
}
