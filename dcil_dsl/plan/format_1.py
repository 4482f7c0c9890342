"""Read plans and file headers of format 1, in which words were spread over plain fields.

In:   the JSON of a plan, or of the header of an exported file, whose format is 1.
Out:  the same as format 2.
Not:  no check of values; the Plan reports what is wrong. ValueError if it is not of format 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Json = dict[str, Any]


def upgrade(plan: Json) -> Json:
    """A plan of format 1 as one of format 2."""
    with _of_format_1("a plan"):
        augment = [_word(one) for one in _list(plan["data"].get("augment", []))]
        return plan | {
            "format": 2,
            "data": plan["data"] | {"augment": augment},
            "groups": [_group(group) for group in _list(plan["groups"])],
            "paths": [_path(path) for path in _list(plan["paths"])],
            "losses": [_loss(loss) for loss in _list(plan["losses"])],
            "train": _train(plan["train"]),
        }


def upgrade_origin(header: Json) -> Json:
    """The header of an exported file."""
    with _of_format_1("a header"):
        promises = [_budget(one) for one in _list(header["promises"])]
        return header | {"format": 2, "promises": promises}


@contextmanager
def _of_format_1(what: str) -> Iterator[None]:
    """ValueError for what is missing or of another type."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is not {what} of format 1: {error!r}") from None


def _list(value: Any) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]} is not a list")
    return value


def _word(record: Json) -> Json:
    return {"word": record["word"], "settings": record.get("settings", {})}


def _outside(record: Json, **more: object) -> Json:
    """A word of a package, whose record stood as it is. `js` was one without a package."""
    return record | {"settings": record.get("settings", {}) | more}


def _settings(part: Json, *names: str) -> Json:
    return {name: part[name] for name in names if name in part}


def _budget(group: Json) -> Json:
    group = dict(group)
    allocation, shared_by = group.pop("allocation"), group.pop("shared_by", "target")
    unit = group.pop("unit", {"kind": "weight"})
    sparsity = group.pop("target", group.get("asked", 0.0))
    word: Json = {"word": "global" if allocation == "global" else "uniform"}
    word["settings"] = {"sparsity": sparsity}
    if unit["kind"] == "nm":
        word = {"word": "nm", "settings": _settings(unit, "n", "m")}
    elif shared_by != "target":
        word["word"] = shared_by
        if shared_by == "sensitivity":
            word["settings"]["profile"] = "profile.json"  # format 1 did not record the name
    group["target"] = word
    if unit["kind"] != "nm":
        group["granularity"] = {
            "word": unit["kind"],
            "settings": _settings(unit, "height", "width"),
        }
    return group


def _group(group: Json) -> Json:
    group = _budget(group)
    group["score"] = _score(group["score"])
    group["schedule"] = _schedule(group["schedule"])
    group["penalties"] = [_penalty(one) for one in _list(group.get("penalties", []))]
    power, regrow = group.pop("power", None), group.get("regrow")
    group["param"] = power and {"word": "power", "settings": {"alpha": power}}
    if regrow is not None:
        settings = {"share": regrow["share"], "stop": regrow["until"]}
        if regrow.get("path") is None:
            group["regrow"] = {"word": "random", "settings": settings}
        else:
            settings["path"] = regrow["path"]
            group["regrow"] = {"word": "gradient", "settings": settings}
    return group


def _score(score: Json | str) -> Json:
    if isinstance(score, str):
        return {"word": score}
    if score.get("outside"):
        more = _settings(score, "average", "path")
        given = {name: value for name, value in more.items() if value is not None}
        return _outside(score["outside"], **given)
    names = {"random": ("redraw",), "magnitude": ("average",), "l2": ("average",)}
    own = names.get(score["kind"], ("average", "path"))
    return {"word": score["kind"], "settings": _settings(score, *own)}


def _schedule(schedule: Json) -> Json:
    kind = schedule["kind"]
    if kind == "constant":
        return {"word": kind}
    if kind == "once":
        return {"word": kind, "settings": {"at": schedule.get("start", 0)}}
    over = [schedule.get("start", 0), schedule.get("stop", 0)]
    return {"word": kind, "settings": {"over": over, **_settings(schedule, "initial", "grid")}}


def _penalty(penalty: Json) -> Json:
    settings = _settings(penalty, "part", "weight", "stairs")
    if penalty.get("outside"):
        return _outside(penalty["outside"], **settings)
    return {"word": penalty["form"], "settings": settings}


def _path(path: Json) -> Json:
    path = dict(path)
    outside = path.pop("outside", None)
    path["view"] = outside or {"word": path["view"]}
    return path


def _loss(loss: Json) -> Json:
    term = dict(loss["term"])
    kind, batch = term.pop("kind"), term.pop("batch", 1.0)
    if kind == "outside":
        return loss | {"term": term["outside"], "batch": batch}
    beta, weights = term.pop("beta", None), term.pop("class_weights", None)
    if beta is not None:
        term["classes"] = {"beta": beta, "weights": weights}
    return loss | {"term": {"word": kind, "settings": term}, "batch": batch}


def _train(train: Json) -> Json:
    train = dict(train)
    optimizer, rate = dict(train["optimizer"]), dict(train["rate"])
    train["optimizer"] = {"word": optimizer.pop("kind"), "settings": optimizer}
    own = {"multistep": ("at", "gamma"), "cosine": ("final",)}.get(rate["kind"], ())
    train["rate"] = {
        "word": rate["kind"],
        "settings": _settings(rate, "warmup", "warmup_from", *own),
    }
    integrator = train.get("integrator")
    if integrator is not None:
        named = {"extrapolate": ("rate", "direction"), "implicit": ("iterations",)}
        names = named.get(integrator["kind"], ("players",))
        train["integrator"] = integrator.get("outside") or {
            "word": integrator["kind"],
            "settings": _settings(integrator, *names),
        }
    average = train.get("average")
    if average is not None:
        train["average"] = {"word": "late_phase", "settings": {"layers": "", **average}}
    balance = train.get("balance")
    if balance is not None:
        train["balance"] = {"word": "inverse_dirichlet", "settings": balance}
    return train
