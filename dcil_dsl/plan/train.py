"""The `train` block in steps.

In:   the checked word, and what layers it named.
Out:  Train, a part of the Plan.
Not:  what a step does (training/).
"""

from __future__ import annotations

from dcil_dsl.extend import kinds
from dcil_dsl.lang import vocabulary as v
from dcil_dsl.plan import plan as p


def resolve_train(
    train: v.Train, average: p.LatePhase | None, num_epochs: int, steps_per_epoch: int,
    num_steps: int,
) -> p.Train:  # fmt: skip
    """The part of the Plan. average: the word's, which needed the layers (late_phase.py)."""

    def steps(time):
        return time.to_steps(steps_per_epoch, num_steps)

    match train.optimizer:
        case v.SGD():
            optimizer = p.SGD(**train.optimizer.model_dump())
        case v.AdamW():
            optimizer = p.AdamW(**train.optimizer.model_dump())
    rate = {"warmup": steps(train.lr.warmup) if train.lr.warmup else 0}
    rate["warmup_from"] = train.lr.warmup_from
    match train.lr:
        case v.ConstantRate():
            rate["kind"] = "constant"
        case v.Multistep(at=at, gamma=gamma):
            rate |= {"kind": "multistep", "at": tuple(steps(t) for t in at), "gamma": gamma}
        case v.Cosine(final=final):
            rate |= {"kind": "cosine", "final": final}
    balance = None
    if train.balance is not None:
        every = max(1, steps(train.balance.every))
        balance = p.Balance(every=every, average=train.balance.average)
    return p.Train(
        num_epochs=num_epochs,
        optimizer=optimizer,
        rate=p.Rate(**rate),
        precision=train.precision,
        clip=train.clip,
        ema=train.ema,
        accumulate=train.accumulate,
        sync_norms=train.sync_norms,
        average=average,
        balance=balance,
        integrator=_integrator(train.integrator),
        seed=train.seed,
    )


def _integrator(word: v.Integrator | None) -> p.Integrator | None:
    if word is None:
        return None
    if isinstance(word, kinds.Integrator):
        return p.Integrator(kind="outside", players=word.players, iterations=word.evaluations,
                            outside=word.outside)
    kind = next(name for name, cls in v.INTEGRATORS.items() if isinstance(word, cls))
    return p.Integrator(kind=kind, **word.model_dump())
