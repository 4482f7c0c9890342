"""E2xx, W2xx: a recipe that is wrong, or doubtful, by itself.

In:   nothing.
Out:  RECIPE.
Not:  what only a model can show.
"""

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


def _mix(kept="sparse", pruned="dense", loss="cross_entropy(sparse)", deploy="sparse") -> str:
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
        "Following `extends` from recipe to recipe comes back to one that was there before.",
    ),
    entry(
        "E203",
        "too many parents",
        "A chain of recipes that extend each other is at most eight long.",
    ),
    entry(
        "E204",
        "a `let` is defined by itself",
        "The value of a `let` may use others, but not in a circle.",
        "let a = b\nlet b = a\nprune Conv2d to a",
        "let a = 90%\nlet b = a\nprune Conv2d to b",
    ),
    entry(
        "E205",
        "a value out of its limits",
        """A percentage lies between 0% and 100%, a moment in the run; settings have limits of
          their own.""",
        "prune Conv2d to 130%",
        "prune Conv2d to 90%",
    ),
    entry(
        "E206",
        "another kind of value",
        """Every setting takes one kind of value. A percentage is never a time: `75%` is a share
          of weights, `75% run` a moment of the run.""",
        "pruning { freeze = 80% }",
        "pruning { freeze = 80% run }",
    ),
    entry(
        "E207",
        "units that do not combine",
        """Like adds to like, and a number scales anything: `5ep + 10ep`, `0.5 * 90%`.
          Percentages, epochs and steps never mix.""",
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
        "pruning { schedule = cubik(0ep..5ep) }",
        "pruning { schedule = cubic(0ep..5ep) }",
    ),
    entry(
        "E211",
        "a setting is missing",
        "This word cannot do without the setting.",
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
        """Only what cannot be mistaken is given without a name: `global(90%)`, `cubic(0ep..5ep)`,
          `cross_entropy(sparse)`. `kl` names both sides, because its direction matters.""",
        _mix(loss="kl(sparse, dense)"),
        _mix(loss="kl(student=sparse, teacher=dense)"),
    ),
    entry(
        "E214",
        "a range in the wrong order",
        "A ramp goes from an earlier moment to a later one, and from less to more.",
        "pruning { schedule = cubic(8ep..2ep) }",
        "pruning { schedule = cubic(2ep..8ep) }",
    ),
    entry(
        "E215",
        "a block is missing",
        """Every recipe, with what it extends, says who learns from whom (`mix`) and how long
          (`train`).""",
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
        """The parts are `kept` and `pruned`, which the mask makes, `reserve`, the best of the
          pruned ones where a rule has a `reserve`, and `rest`, the weights that no rule prunes.""",
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
        "nothing is learnt",
        "`mix` has no loss.",
        "\n".join(line for line in _mix().splitlines() if "loss" not in line),
        _mix(),
    ),
    entry(
        "E220",
        "two updates at one moment",
        "One rule at a time updates a part of the weights; it may add up several paths.",
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
        """A small name in a selector is a `layers` definition. Types have a capital (`Conv2d`),
          names of layers stand in quotes (`"layer1.*"`).""",
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
        "a pattern that is not valid",
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
        "What changes pixels comes first, then `erase`, which sets boxes to the mean of the "
        "data, then `mixup` and `cutmix`, which mix examples that are ready.",
        "data digits { augment = [mixup(0.2), flip()] }",
        "data digits { augment = [flip(), mixup(0.2)] }",
    ),
    entry(
        "E232",
        "a pattern that ramps",
        """Of every m weights n stay, or all do: between the two there is no sparsity to pass
          through. `once(at=10ep)` begins at a moment, `constant()` with the run.""",
        "prune Conv2d to 2:4 { schedule = cubic(0ep..5ep) }",
        "prune Conv2d to 2:4 { schedule = once(at=5ep) }",
    ),
    entry(
        "E233",
        "a score without a gradient",
        """`taylor`, `movement` and `gradient` take the gradient of one path, the deployed one
          unless another is named, as in `taylor(dense)`. A path that no loss needs has none.""",
        "prune Conv2d to 90% { score = taylor(dense) }\n"
        + _mix().replace("  loss cross_entropy(dense)\n", ""),
        "prune Conv2d to 90% { score = taylor(sparse) }",
    ),
    entry(
        "E234",
        "a score that `lamp` cannot take",
        "`lamp` compares w^2 with the squares in its layer: its score is `magnitude` or `l2`.",
        "prune Conv2d to lamp(90%) { score = taylor }",
        "prune Conv2d to lamp(90%)",
    ),
    entry(
        "E235",
        "settings that have no meaning together",
        """A `reserve` and `regrow` choose single weights and drop by size; a soft threshold needs
          masks that keep what is larger than some number. Other units and scores have neither.""",
        "prune Conv2d to 2:4 { regrow = gradient(30%) }",
        "prune Conv2d to 90% { regrow = gradient(30%) }",
    ),
    entry(
        "E236",
        "settings of `train` that do not go together",
        """An `integrator` takes several gradients of one batch in one process, as they are, so
          neither `accumulate` nor the scaled gradients of fp16 go with it. `players=each` moves
          kept and pruned weights in turns: a rule has to prune. `balance` measures gradients in
          the same way, and needs a path with two losses. `average = late_phase(...)` adds up the
          gradients of several steps, so that `clip`, `ema`, `integrator` and fp16 do not go
          with it.""",
        "train {\n  epochs     = 10ep\n  optimizer  = sgd(lr=0.1)\n  integrator = rk4()\n"
        "  accumulate = 2\n}",
        "train {\n  epochs     = 10ep\n  optimizer  = sgd(lr=0.1)\n  integrator = rk4()\n}",
    ),
    entry(
        "E238",
        "a bound of layers that share no budget",
        """`bounds` holds what layers of one rule keep together, which their scores decide where
          they share a budget. A layer with a budget of its own keeps what its target says.""",
        'layers some = "conv1"\nprune Conv2d to 90% { bounds = [within(some, floor=30%)] }',
        'layers some = "conv1"\nprune Conv2d to global(90%) { bounds = [within(some, floor=30%)] }',
    ),
    entry(
        "E239",
        "a path that cannot leave out what is pruned",
        """`compute = kept` spares a path the arithmetic of pruned filters. So it must see zeros
          there, and no pruned weight can learn from it. Of a 2:4 pattern it spares products of the
          forward pass alone: where no rule has filters or channels, pruned weights may.""",
        _mix().replace("= full", "= full { compute = kept }"),
        _mix().replace("= masked", "= masked { compute = kept }")
        + "prune Conv2d to uniform(50%, granularity=filter)",
    ),
    entry(
        "E241",
        "a package of words that is not there",
        """`uses` names the packages whose words a recipe knows. One of them is not installed
          here, or declares no words.""",
        'recipe mine { uses = ["no-such-package-of-words"] }',
        "recipe mine { uses = [] }",
    ),
    entry(
        "E242",
        "one word of two meanings",
        """Two packages that the recipe uses have a word of the same name, or a package has one of
          the language. Neither wins: a recipe means the same wherever it is read.""",
    ),
    entry(
        "E243",
        "a word that is declared wrongly",
        """The package declares the word, but its class cannot be imported, is no subclass of one
          of `dcil_dsl.words`, lacks the method of its kind, or has settings that no plan can
          hold.""",
    ),
    entry(
        "W201",
        "an unused `let`",
        "Nothing in the recipe uses the name; often it is misspelt.",
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
        """No update rule names a part of the weights. `update pruned by 0 * sparse` says that
          this is meant.""",
        _mix().replace("  update pruned by dense\n", ""),
        _mix(),
    ),
    entry(
        "W204",
        "a setting has no effect",
        "Every rule gives the setting for itself.",
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
        "a reserve that means nothing",
        "A `reserve` is for an `update` of its own, and that update needs a rule with a reserve.",
        "prune Conv2d to 90% { reserve = 5% }",
        "prune Conv2d to 90%",
    ),
)
