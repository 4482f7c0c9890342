"""Libraries that training needs and the compiler does not: imported when they are first used.

In:   the name of a module.
Out:  a stand-in for it, which imports it at the first look; InputError with the line that installs
      it where it is missing.
Not:  libraries of integrations: those are imported by who has them.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from dcil_dsl.diagnostics.errors import InputError

# What the extra `train` of pyproject.toml brings: the name to import, and the one to install.
TRAINING = {
    "torchvision": "torchvision",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "torchmetrics": "torchmetrics",
    "tensorboard": "tensorboard",
}
TEXT = ("transformers", "datasets")  # of the extra `text`
INSTALL = "pip install 'dcil-dsl[train]'"
INSTALL_TEXT = "pip install 'dcil-dsl[text]'"


class LazyModule:
    """A module by its name. `library("PIL.Image").open` imports PIL.Image."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        try:
            module = importlib.import_module(self._name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in TEXT:
                raise InputError(f"{missing} is not installed", help=INSTALL_TEXT) from None
            if missing not in TRAINING:
                raise
            raise InputError(f"{TRAINING[missing]} is not installed", help=INSTALL) from None
        return getattr(module, name)


def library(name: str) -> Any:
    """The module, once it is used."""
    return LazyModule(name)


def is_installed(name: str) -> bool:
    """Whether a library can be imported."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def require_training(what: str) -> None:
    """InputError where a library of the extra `train` is missing: before anything is done."""
    missing = [called for name, called in TRAINING.items() if not is_installed(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{what} needs {', '.join(missing)}, which {verb} not installed", help=INSTALL
        )
