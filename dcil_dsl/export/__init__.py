"""What people deploy: one path as an ordinary model, its file, and the proof of its sparsity.

`dcil_dsl.export` is this folder and also the verb `export(dual)`: importing the folder binds
its name in the package, so the two are made one thing rather than left to the order of imports.
"""

from __future__ import annotations

import sys
from types import ModuleType


class _Verb(ModuleType):
    def __call__(self, dual, path: str | None = None):
        """One path of a Dual as the original class, zeros in place; None is the deployed path."""
        from dcil_dsl.export.collapse import collapse

        return collapse(dual, path)


sys.modules[__name__].__class__ = _Verb
