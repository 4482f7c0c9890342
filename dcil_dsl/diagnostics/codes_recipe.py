"""E2xx, W2xx: a recipe that is wrong, or doubtful, whatever the model."""

from __future__ import annotations

from dcil_dsl.diagnostics.code import Code, entry

_MIX = """
mix {{
  path sparse = masked
  path dense  = full
  update kept   by {kept}
  update pruned by {pruned}
  loss {loss}
  loss cross_entropy(dense)
  deploy {deploy}
}}
"""


def _mix(
    kept: str = "sparse",
    pruned: str = "dense",
    loss: str = "cross_entropy(sparse)",
    deploy: str = "sparse",
) -> str:
    return _MIX.format(kept=kept, pruned=pruned, loss=loss, deploy=deploy)


RECIPE: tuple[Code, ...] = (
    entry(
        "E201",
        "the parent recipe cannot be read",
        "The path after `extends` is relative to the folder of the recipe that says it.",
        'language 1\nextends "missing.prune"',
        'language 1\nextends "resnet32_cifar10_dcil90.prune"',
    ),
    entry(
        "E202",
        "a recipe extends itself",
        "The chain of `extends` returns to a recipe that is already in it.",
    ),
    entry(
        "E203",
        "too many parents",
        "A chain of recipes that extend each other is at most eight long.",
    ),
    entry(
        "E204",
        "a `let` is defined in terms of itself",
        "The value of a `let` may use others, but not in a circle.",
        "let a = b\nlet b = a\nprune Conv2d to a",
        "let a = 90%\nlet b = a\nprune Conv2d to b",
    ),
    entry(
        "E205",
        "a value out of its limits",
        """A percentage is between 0% and 100%, and a time within the run; other settings have
          limits of their own.""",
        "prune Conv2d to 130%",
        "prune Conv2d to 90%",
    ),
    entry(
        "E206",
        "a value of the wrong type",
        """Every setting takes one type of value. A percentage is never a time: `75%` is a share
          of weights, `75% run` a time in the run.""",
        "pruning { freeze = 80% }",
        "pruning { freeze = 80% run }",
    ),
    entry(
        "E207",
        "units that do not combine",
        """Values of the same unit can be added, and a number scales any value: `5ep + 10ep`,
          `0.5 * 90%`. Percentages, epochs and steps cannot be mixed.""",
        "let warm = 5ep + 10%\npruning { freeze = warm }",
        "let warm = 5ep + 10ep\npruning { freeze = warm }",
    ),
    entry(
        "E208",
        "given twice",
        """Each block, setting, name and path is given once in a file. A recipe that extends
          another may give it again.""",
        "let target = 90%\nlet target = 95%\nprune Conv2d to target",
        "let target = 95%\nprune Conv2d to target",
    ),
    entry(
        "E209",
        "an undefined name",
        "A bare name is a `let`, a path or a word of the vocabulary.",
        "prune Conv2d to global(targett)",
        "let target = 90%\nprune Conv2d to global(target)",
    ),
    entry(
        "E210",
        "an unknown word",
        "Each place takes its own words: a schedule, a score, an optimizer ...",
        "pruning { schedule = liner(0ep..5ep) }",
        "pruning { schedule = linear(0ep..5ep) }",
    ),
    entry(
        "E211",
        "a setting is missing",
        "The word or block requires this setting.",
        "train { epochs = 10ep }",
        "train {\n  epochs    = 10ep\n  optimizer = sgd(lr=0.1)\n}",
    ),
    entry(
        "E212",
        "an unknown setting",
        "The block or word has no setting of this name.",
        "pruning { refrehs = 16 steps }",
        "pruning { refresh = 16 steps }",
    ),
    entry(
        "E213",
        "a value without its name",
        """A value without a name is allowed only where its meaning is clear: `global(90%)`,
          `linear(0ep..5ep)`, `cross_entropy(sparse)`. `kl` names both sides, because its direction
          matters.""",
        _mix(loss="kl(sparse, dense)"),
        _mix(loss="kl(student=sparse, teacher=dense)"),
    ),
    entry(
        "E214",
        "a range in the wrong order",
        "A ramp goes from an earlier time to a later one, and from less to more.",
        "pruning { schedule = linear(8ep..2ep) }",
        "pruning { schedule = linear(2ep..8ep) }",
    ),
    entry(
        "E215",
        "a block is missing",
        """Every recipe, with those that it extends, has a block `mix`, which says which weights
          learn from which path, and a block `train`.""",
        "language 1\nprune Conv2d to 90%",
        "",
    ),
    entry(
        "E216",
        "an unknown path",
        "`update`, `loss` and `deploy` name paths that `mix` declares.",
        _mix(deploy="spare"),
        _mix(),
    ),
    entry(
        "E217",
        "an unknown part of the weights",
        """The parts are `kept` and `pruned`; `reserve`, the pruned weights with the highest
          scores, where a rule has a `reserve`; and `rest`, the weights that no rule prunes.""",
        _mix().replace("update kept  ", "update keep_"),
        _mix(),
    ),
    entry(
        "E218",
        "no path is deployed",
        "`deploy` says which path is evaluated, exported and used.",
        _mix().replace("  deploy sparse\n", ""),
        _mix(),
    ),
    entry(
        "E219",
        "no loss",
        "`mix` has no loss, so that no weight would learn.",
        "\n".join(line for line in _mix().splitlines() if "loss" not in line),
        _mix(),
    ),
    entry(
        "E220",
        "two updates at the same time",
        "One `update` at a time trains a part of the weights; it may sum several paths.",
        _mix(kept="sparse\n  update kept by dense"),
        _mix(kept="0.5 * sparse + 0.5 * dense"),
    ),
    entry(
        "E221",
        "no path sees the masks",
        "Weights are pruned, but every path uses all of them.",
        _mix().replace("masked", "full"),
        _mix(),
    ),
    entry(
        "E222",
        "`--set` names nothing",
        "`--set` changes a `let`, or a setting by its block: `--set train.epochs=5ep`.",
    ),
    entry(
        "E223",
        "an undefined set of layers",
        """In a selector, a lower-case name is a `layers` definition. Types begin with a capital
          (`Conv2d`), names of layers are in quotes (`"layer1.*"`).""",
        "prune shortcuts to 70%",
        'layers shortcuts = Conv2d in "layer?.0.downsample"\nprune shortcuts to 70%',
    ),
    entry(
        "E224",
        "an unknown metric",
        "A recipe can expect `sparsity` and the metrics of a task: `top1`, `mse`, `r2` ...",
        "expect { accuracy >= 92% }",
        "expect { top1 >= 92% }",
    ),
    entry(
        "E225",
        "a `let` hides another meaning",
        """A `let` stands for its value wherever a value is written, so it cannot share its name
          with a path or a word.""",
        "let magnitude = 90%\nprune Conv2d to magnitude",
        "let target = 90%\nprune Conv2d to target",
    ),
    entry(
        "E226",
        "an invalid regular expression",
        "The text after `re` is a regular expression of Python.",
        'prune re"layer[1.*" to 90%',
        'prune re"layer[12].*" to 90%',
    ),
    entry(
        "E227",
        "a window that never opens",
        "`from` is before `until`.",
        _mix(loss="cross_entropy(sparse) from 9ep until 3ep"),
        _mix(loss="cross_entropy(sparse) from 3ep until 9ep"),
    ),
    entry(
        "E228",
        "not a number",
        "The number is too large to hold, or is divided by zero.",
        "let a = 1 / 0\nprune Conv2d to a",
        "let a = 90% / 2\nprune Conv2d to a",
    ),
    entry(
        "E229",
        "augmentations in the wrong order",
        "Augmentations of single images come first, then `erase`, which sets boxes to the mean of "
        "the data, then `mixup` and `cutmix`, which mix finished examples.",
        "data digits { augment = [mixup(0.2), flip()] }",
        "data digits { augment = [flip(), mixup(0.2)] }",
    ),
    entry(
        "E233",
        "a score without a gradient",
        """A score of gradients takes those of one path, the deployed one unless another is named,
          as in `gradient(dense)`. A path that no loss needs has no gradients.""",
        "prune Conv2d to 90% { score = gradient(dense) }\n"
        + _mix().replace("  loss cross_entropy(dense)\n", ""),
        "prune Conv2d to 90% { score = gradient(sparse) }",
    ),
    entry(
        "E234",
        "a score that the target cannot compare",
        "The target compares squared weights; the score must be `magnitude` or `l2`.",
        "prune Conv2d to lamp(90%) { score = gradient }",
        "prune Conv2d to lamp(90%)",
    ),
    entry(
        "E235",
        "settings that cannot be combined",
        """`reserve`, `regrow` and `soft_threshold` rank single weights by magnitude; they cannot
          be combined with other granularities or scores. `before` prunes whole units of each layer,
          and the rule single weights of what they leave. A threshold asks for no share, so settings
          that need one have no meaning with it. A penalty of a rule is on the weights that it
          prunes.""",
        "prune Conv2d to 2:4 { regrow = gradient(30%) }",
        "prune Conv2d to 90% { regrow = gradient(30%) }",
    ),
    entry(
        "E236",
        "settings of `train` that cannot be combined",
        """An `integrator` computes several gradients of one batch in one process, so it cannot be
          combined with `accumulate` or with the scaled gradients of fp16. `players=each` updates
          kept and pruned weights in turn and needs a rule that prunes. `balance` measures
          gradients in the same way and needs a path with two losses. `average = late_phase(...)`
          sums the gradients of several steps, so it excludes `clip`, `ema`, `integrator` and
          fp16.""",
        "train {\n  epochs     = 10ep\n  optimizer  = sgd(lr=0.1)\n  integrator = rk4()\n"
        "  accumulate = 2\n}",
        "train {\n  epochs     = 10ep\n  optimizer  = sgd(lr=0.1)\n  integrator = rk4()\n}",
    ),
    entry(
        "E238",
        "a bound of layers that share no budget",
        """`bounds` limits how much several layers of one rule keep together, which is open only
          if they share a budget. A layer with a budget of its own keeps what its target says.""",
        'layers some = "conv1"\nprune Conv2d to 90% { bounds = [within(some, floor=30%)] }',
        'layers some = "conv1"\nprune Conv2d to global(90%) { bounds = [within(some, floor=30%)] }',
    ),
    entry(
        "E239",
        "a path that cannot skip pruned weights",
        """`compute = kept` skips the arithmetic of pruned filters in a path. The path must see
          zeros there, and no pruned weight can learn from it. For 2:4 patterns it skips products
          in the forward pass only; if no rule prunes filters or channels, pruned weights may
          learn from the path.""",
        _mix().replace("= full", "= full { compute = kept }"),
        _mix().replace("= masked", "= masked { compute = kept }")
        + "prune Conv2d to uniform(50%, granularity=filter)",
    ),
    entry(
        "E241",
        "a package of words is missing",
        """`uses` names the packages whose words a recipe uses. One of them is not installed, or
          declares no words.""",
        'recipe mine { uses = ["no-such-package-of-words"] }',
        "recipe mine { uses = [] }",
    ),
    entry(
        "E242",
        "one word with two meanings",
        """Two packages that the recipe uses declare the same word, or a package declares a word
          of the language. Neither wins: a recipe means the same wherever it is read.""",
    ),
    entry(
        "E243",
        "a word with an invalid class",
        """The package declares the word, but its class cannot be imported, is not a subclass of
          one of `dcil_dsl.words`, lacks the method of its kind, or has settings that a plan
          cannot hold.""",
    ),
    entry(
        "E244",
        "a deployed complement",
        """A `complement` path sees the weights that the masks prune, and zeros where they keep. Its
          file would not have the zeros that the rules ask for.""",
        "prune Conv2d to 90%\n" + _mix(deploy="dense").replace("= full", "= complement"),
        "prune Conv2d to 90%\n" + _mix().replace("= full", "= complement"),
    ),
    entry(
        "E251",
        "a teacher that cannot be",
        """A teacher only teaches: no weight learns from it and it is not deployed; a loss names it
          as `teacher`. `network` names a network of a library, or none, which the caller gives; a
          recipe runs nobody's own code.""",
        """
          mix {
            path sparse = masked
            path slow   = ema(sparse)
            update kept, pruned by sparse
            loss cross_entropy(sparse)
            loss cross_entropy(slow)
            deploy sparse
          }
          """,
        """
          mix {
            path sparse = masked
            path slow   = ema(sparse)
            update kept, pruned by sparse
            loss cross_entropy(sparse)
            loss kl(student=sparse, teacher=slow)
            deploy sparse
          }
          """,
    ),
    entry(
        "W201",
        "an unused `let`",
        "Nothing in the recipe uses the name; often it is misspelled.",
        "let targte = 95%",
        "let target = 95%\nprune Conv2d to target",
    ),
    entry(
        "W202",
        "an unused `layers`",
        "No rule uses the definition.",
        'layers stem = "conv1"',
        'layers stem = "conv1"\nkeep stem',
    ),
    entry(
        "W203",
        "weights that never learn",
        """No `update` names a part of the weights. `update pruned by 0 * sparse` states that this
          is intended.""",
        _mix().replace("  update pruned by dense\n", ""),
        _mix(),
    ),
    entry(
        "W204",
        "a setting has no effect",
        "Every rule has its own value for the setting.",
        "pruning { refresh = 8 steps }\nprune Conv2d to 90% { refresh = 4 steps }",
        "pruning { refresh = 8 steps }\nprune Conv2d to 90%",
    ),
    entry(
        "W205",
        "a path without a loss",
        "A path runs in training while a loss needs it; this one never does.",
        _mix().replace("  loss cross_entropy(dense)\n", ""),
        _mix(),
    ),
    entry(
        "W206",
        "masks without pruning",
        "A path is masked or pruned weights are updated, but no rule prunes.",
        "language 1\n" + _mix() + "train {\n  epochs    = 10ep\n  optimizer = sgd(lr=0.1)\n}",
        "prune Conv2d to 90%",
    ),
    entry(
        "W207",
        "a reserve without an effect",
        "A `reserve` is for an `update` of its own, and that update needs a rule with a reserve.",
        "prune Conv2d to 90% { reserve = 5% }",
        "prune Conv2d to 90%",
    ),
    entry(
        "W208",
        "a deployed path that is not pruned",
        """Rules prune, and the deployed path sees all weights: its file has no zeros of theirs.
          That is intended where the masks only shape the training of a dense network.""",
        "prune Conv2d to 90%\n" + _mix(deploy="dense"),
        "prune Conv2d to 90%\n" + _mix(),
    ),
)
