"""Models of transformers, built from their configurations.

In:   the name of a class ("BertForSequenceClassification") or a folder that holds a config.json;
      options that replace fields of the configuration.
Out:  a builder for spec.py, which gives the model with fresh weights in float32.
Not:  nothing is downloaded, and no weights are read: a folder's come with --weights.

A field of an inner configuration is written with two underscores between: the option
`text_config__hidden_size = 64` of CLIPModel.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import nearest

FORM = "hf: is followed by a class of transformers, hf:BertForSequenceClassification, or a folder"
# Names in transformers that may be models; the package loads a class when it is asked for.
OF_EVERY_MODEL = (
    "num_labels",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
MODEL_NAME = re.compile(r"[A-Z]\w*(Model|For[A-Z]\w*)")


def transformers_builder(name: str) -> tuple[Callable[..., nn.Module], bool]:
    """What builds hf:NAME from options, and whether it has a number of classes to be given.

    Raises InputError: transformers is missing, or has no such model, or the folder holds none.
    """
    try:
        import transformers
    except ImportError:
        fact = f"`hf:{name}` needs transformers, which is not installed"
        raise InputError(fact, "pip install transformers") from None
    if Path(name).expanduser().is_dir() or "/" in name:
        config, kind = _read_folder(name, transformers)
        fields = config.to_dict()
    else:
        kind, fields = _class_named(name, transformers), {}

    def builder(**options) -> nn.Module:
        return kind(_configure(kind.config_class, fields, options, f"hf:{name}"))

    return builder, "Classification" in kind.__name__


def _class_named(name: str, transformers) -> type:
    known = [entry for entry in dir(transformers) if MODEL_NAME.fullmatch(entry)]
    kind = getattr(transformers, name, None) if name in known else None
    if inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel):
        if kind.config_class is not None:
            return kind
    if kind is not None:
        raise InputError(f"`hf:{name}` is a choice among models, not one model", FORM)
    near = nearest(name, known) or _by_type(name)
    hint = f"did you mean `hf:{near}`?" if near else f"{FORM}; nothing is downloaded"
    raise InputError(f"transformers has no model called `{name}`", hint)


def _by_type(name: str) -> str | None:
    """ "bert" and "bert-base-uncased" are BertModel, as far as their first part is a known type."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    types = {kind.replace("_", "-"): model for kind, model in MODEL_MAPPING_NAMES.items()}
    parts = name.lower().replace("_", "-").split("-")
    for end in range(len(parts), 0, -1):
        model = types.get("-".join(parts[:end]))
        if model is not None:
            return model if isinstance(model, str) else model[0]
    return None


def _read_folder(name: str, transformers) -> tuple[object, type]:
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        what = "holds no config.json" if folder.is_dir() else "is no folder"
        raise InputError(f"`hf:{name}`: {name} {what}", f"{FORM}; nothing is downloaded")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever transformers finds wrong with the file
        raise InputError(f"`hf:{name}`: its config.json cannot be used: {_flat(error)}") from error
    if not config.architectures:
        fact = f"`hf:{name}`: its config.json names no model under `architectures`"
        raise InputError(fact, "name the class there, or give it as hf:CLASS with options")
    return config, _class_named(config.architectures[0], transformers)


def _configure(kind: type, fields: dict, options: dict, spec: str):
    """A configuration of class `kind`; `options` go over `fields`, inner ones by `outer__inner`."""
    values = dict(fields)
    for option, value in options.items():
        outer, _, inner = option.partition("__")
        known = _fields(kind)
        if not inner:
            _demand(option in known, option, known, spec)
            values[option] = value
            continue
        config = (getattr(kind, "sub_configs", None) or {}).get(outer)
        _demand(config is not None, outer, list(getattr(kind, "sub_configs", {})), spec)
        known = _fields(config)
        _demand(inner in known, inner, known, f"{spec}, {outer}")
        part = values.setdefault(outer, {})
        part[inner] = value
    try:
        return kind.from_dict(values) if fields else kind(**values)
    except InputError:
        raise
    except Exception as error:  # transformers and its configurations judge each in their own way
        raise InputError(f"`{spec}` cannot be configured so: {_flat(error)}") from error


def _fields(kind: type) -> list[str]:
    named = inspect.signature(kind.__init__).parameters
    known = [name for name, p in named.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    return [*known, *getattr(kind, "attribute_map", {}), *OF_EVERY_MODEL]


def _demand(holds: bool, option: str, known: list[str], spec: str) -> None:
    if not holds:
        near = nearest(option, known)
        hint = f"did you mean `{near}`?" if near else None
        raise InputError(f"`{spec}` takes no option `{option}`", hint)


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
