"""E3xx, W3xx: a recipe that does not fit a model. E4xx: a model that does not compile."""

from __future__ import annotations

from dcil_dsl.diagnostics.code import Code, entry

MODEL: tuple[Code, ...] = (
    entry(
        "E301",
        "a selector matches nothing",
        """Each part of a selector must name at least one layer of the model. `dcil plan` lists
          the layers; a type is the name of a class, a quoted name may hold `*` and `?`.""",
        'prune "encoder.*.fc1" to 90%',
        'prune "layer?.*.conv?" to 90%',
    ),
    entry(
        "E302",
        "nothing here can be pruned",
        """Convolutions, linear and recurrent layers, embeddings, attention projections and every
          module with a `weight` of two dimensions or more can be pruned; norms cannot.""",
        "prune BatchNorm2d to 90%",
        "prune Conv2d to 90%",
    ),
    entry(
        "E303",
        "pruned and private",
        """A pruned weight is shared by all paths; a private module has its own weights on each.
          A module cannot be both.""",
        """
          prune Conv2d, Linear to 90%
          mix {
            path sparse = masked
            path dense  = full
            update kept   by sparse
            update pruned by dense
            private last Linear
            loss cross_entropy(sparse)
            loss cross_entropy(dense)
            deploy sparse
          }
          """,
        """
          prune Conv2d, Linear except last Linear to 90%
          """,
    ),
    entry(
        "E304",
        "the target is below the floors or above the ceilings",
        """Every layer keeps at least its `floor`, or one unit, and at most its `ceiling`.
          Together the floors ask for more than the target leaves, or the ceilings allow less.""",
        "prune Conv2d to global(99%) { floor = 5% }",
        "prune Conv2d to global(99%) { floor = 0.5% }",
    ),
    entry(
        "E305",
        "the target is never trained at",
        """The ramp must end before the run does and before the masks freeze, or no step trains at
          the requested sparsity.""",
        "prune Conv2d to 90% { schedule = linear(0ep..100% run) }",
        "prune Conv2d to 90% { schedule = linear(0ep..75% run) }",
    ),
    entry(
        "E306",
        "two updates at one moment",
        """In this run the windows of two rules for one part of the weights overlap. One rule may
          add up several paths.""",
    ),
    entry(
        "E307",
        "no layer has this attribute",
        "`where` compares attributes of the layers, such as `groups` or `in_features`.",
        "prune Conv2d where group == 1 to 90%",
        "prune Conv2d where groups == 1 to 90%",
    ),
    entry(
        "E308",
        "this cannot be private",
        """A private module has weights or statistics of its own, which it shares with no other
          one; `init = fresh` needs a module that can reset its weights.""",
    ),
    entry(
        "E309",
        "no path runs",
        """At some moment of the run every loss is outside of its window, so that nothing would
          be learned.""",
    ),
    entry(
        "E310",
        "a weight that cannot be divided into the units",
        """The inputs of each layer are a multiple of the m of `n:m`, both sides multiples of a
          block's, and heads belong to an attention. Keep the other layers, or prune them by a
          rule of their own; no layer is skipped in silence.""",
        "prune Conv2d to 2:4",
        "prune Conv2d to 2:4\nkeep first Conv2d",
    ),
    entry(
        "E311",
        "the FLOPs of a layer are unknown",
        """A budget of FLOPs counts multiply-accumulates, which follow from the shapes of an
          example input. A lookup has none.""",
    ),
    entry(
        "E312",
        "the score has no effect",
        """A score of gradients is summed over the steps; before the first gradient, magnitude is
          used instead. Here every mask is made before the first gradient.""",
        "prune Conv2d to 90% { score = gradient freeze = 0ep }",
        "prune Conv2d to 90% { score = gradient schedule = linear(0ep..5ep) }",
    ),
    entry(
        "E318",
        "a profile, a table or a count that does not fit",
        """`sensitivity(...)` reads a profile that `dcil sensitivity --json FILE` measured: of
          this model's layers, of single weights, and at sparsities as high as the target needs.
          A table, a list or a count has to fit the layers of its rule too, one sparsity for each.
          Paths are relative to the recipe's file.""",
        'prune Conv2d to sensitivity(90%, profile="not-measured.json")',
    ),
    entry(
        "E319",
        "a bound that does not fit its rule",
        """A bound names layers of its rule, each in one bound only. It counts whole units, which
          must all cost the same share of the budget.""",
        'layers head = "fc"\nprune Conv2d to global(90%) { bounds = [within(head, floor=30%)] }',
        'layers head = "fc"\nprune Conv2d, Linear to global(90%) '
        "{ bounds = [within(head, floor=30%)] }",
    ),
    entry(
        "E320",
        "`compute = kept` would skip nothing, or too much",
        """`compute = kept` skips pruned filters or input channels of convolutions in one group and
          of linear layers. Without single weights, blocks or heads no smaller layer of the same
          kind is left; a score may need the gradients of skipped weights. 2:4 weights of linear
          layers whose sides are multiples of 16 run on sparse tensor cores; other patterns, and
          2:4 in convolutions, are computed in full.""",
        """prune Conv2d to 90%
mix {
  path sparse = masked { compute = kept }
  path dense  = full
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}""",
        """prune Conv2d to uniform(50%, granularity=filter)
mix {
  path sparse = masked { compute = kept }
  path dense  = full
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}""",
    ),
    entry(
        "E322",
        "copies that cannot be averaged",
        """`average = late_phase(...)` copies weights that no rule prunes, some but not all,
          and needs enough steps for each copy to train before the run ends.""",
        "layers some = Conv2d\nprune Conv2d to 90%\ntrain {\n  epochs    = 10ep\n"
        "  optimizer = sgd(lr=0.1)\n  average   = late_phase(some)\n}",
        "layers norms = BatchNorm2d\nprune Conv2d to 90%\ntrain {\n  epochs    = 10ep\n"
        "  optimizer = sgd(lr=0.1)\n  average   = late_phase(norms)\n}",
    ),
    entry(
        "E321",
        "a balance that is never computed",
        """`balance` compares the gradients of one path's loss terms at every multiple of `every`,
          and no two terms are open at such a step.""",
    ),
    entry(
        "E323",
        "a regular expression takes too long",
        """An expression such as `(a|aa)+b` tries a number of ways that doubles with each letter
          of a name. It has a second of processor time for all names of a model.""",
        'prune re"(|.|.|.){40}[ab]" to 90%',
        'prune re".*[ab]" to 90%',
    ),
    entry(
        "E324",
        "ties that are not known",
        """`granularity = filter` scores and prunes filters together whose outputs meet in
          additions, groups and shortcuts. Which do follows from the shapes of an example input.""",
        "prune Conv2d to 50% { granularity = filter }",
        "prune Conv2d to 50% { granularity = filter(ties = none) }",
    ),
    entry(
        "E325",
        "filters that cannot go",
        """Every filter of the rule is tied to something that stays: a kept layer, a layer of
          another rule, an output of the model, or an operation that no rule of the dependency
          graph describes.""",
    ),
    entry(
        "E326",
        "a group of weights that cannot learn so",
        """`groups` of `train` names weights that learn at another rate, without weight decay or not
          at all. A group needs weights; frozen ones cannot be pruned, and some have to learn.
          `penalty` of `train` needs weights that learn and that no rule prunes.""",
        "layers stem = first Conv2d\nprune Conv2d to 90%\ntrain {\n  epochs    = 10ep\n"
        "  optimizer = sgd(lr=0.1)\n  groups    = [frozen(stem)]\n}",
        "layers stem = first Conv2d\nprune Conv2d except first Conv2d to 90%\n"
        "train {\n  epochs    = 10ep\n  optimizer = sgd(lr=0.1)\n  groups    = [frozen(stem)]\n}",
    ),
    entry(
        "W307",
        "filters that stay",
        """Some filters of the rule are tied to something that stays: a kept layer, a layer of
          another rule, an output of the model, or an operation that no rule of the dependency
          graph describes. A budget for all counts them as kept; where each layer has a budget of
          its own, they lose nothing.""",
    ),
    entry(
        "E313",
        "paths whose steps do not fit",
        "A path may run every N steps only; all paths that do so must have the same N, an offset "
        "below N, and the same offset where a loss compares them.",
        """mix {
  path sparse = masked
  path dense  = full { every = 2 steps }
  path rest   = complement { every = 3 steps }
}""",
        """mix {
  path sparse = masked
  path dense  = full { every = 2 steps }
  path rest   = complement { every = 2 steps }
}""",
    ),
    entry(
        "W303",
        "a rule has no effect",
        """The last rule that matches a layer wins, and later rules match every layer of this one.
          There is no warning for a rule that comes by `extends`.""",
        "keep first Conv2d\nprune Conv2d to 90%",
        "prune Conv2d to 90%\nkeep first Conv2d",
    ),
    entry(
        "W305",
        "weights that never learn",
        "No update rule gives a part of the weights a gradient from a path that runs.",
    ),
    entry(
        "W306",
        "a time that the run does not reach",
        """The run ends before this loss or update begins, the rate changes or the masks freeze.
          The setting has no effect, or the run is shorter than the recipe was written for.""",
        """train {
  epochs    = 8ep
  optimizer = sgd(lr=0.1)
  lr        = multistep(at=[4ep, 10ep])
}""",
        """train {
  epochs    = 8ep
  optimizer = sgd(lr=0.1)
  lr        = multistep(at=[4ep, 6ep])
}""",
    ),
    entry(
        "E331",
        "a teacher that does not fit",
        """The network of a teacher is built, has all of its weights, takes what the model is given,
          and returns as many numbers as the student: for `kl`, it tells the same classes apart.
          Paths are relative to the recipe's file.""",
    ),
    entry(
        "E401",
        "the model cannot be traced",
        """A module that torch.fx cannot follow stays opaque, and its weights are swapped per path.
          This error is for modules that cannot be copied, are wrapped, are compiled by torch.jit,
          have no weights yet, write to their weights in forward, or raise an error themselves.""",
    ),
    entry(
        "E402",
        "no mask would last on this weight",
        """The weight of this module is computed from other parameters at each call, as weight_norm
          does, or its forward changes it in place, as `max_norm` and momentum targets do; a mask
          would be lost. Exclude it with `except "NAME"` in the rule or `keep "NAME"` below it.""",
    ),
    entry(
        "E403",
        "the compiled graph is wrong",
        """A check of the compiled graph failed. This is a bug of dcil, not of the recipe or the
          model; please report it with both.""",
    ),
)
