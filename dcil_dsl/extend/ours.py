"""The words of this folder: each a class in a file of its own, with its effect.

In:   nothing.
Out:  {word: where its class is}, in the notation of entry points.
Not:  the words of lang/vocabulary.py, whose effects have their places all over the program.
"""

from __future__ import annotations

OURS = {
    "js": "dcil_dsl.extend.divergence:JS",
}
