"""A model in words: what a run that is continued compares with the model it was started with.

In:   a traced model.
Out:  its training graph as code, then each module that the graph calls, with its settings.
Not:  no weights; not what happens inside a module that is not traced but called whole.
"""

from __future__ import annotations

import re

from dcil_dsl.model.trace import Traced


def text_of(traced: Traced) -> str:
    """The same for the same model in every process: addresses in memory are left out."""
    names = dict.fromkeys(n.target for n in traced.train.nodes if n.op == "call_module")
    modules = [f"{name}: {traced.model.get_submodule(name)!r}" for name in names]
    text = "\n".join([traced.train.python_code("self").src.strip(), *modules]) + "\n"
    return re.sub(r" at 0x[0-9a-f]+", "", text)
