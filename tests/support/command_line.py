"""The command line, called in this process, and a model for it.

In:   arguments.
Out:  the status, standard output and standard error; the text of net.py.
Not:  no test.
"""

import pytest

from dcil_dsl.cli import commands

NET = """
from torch import nn


def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, num_classes),
    )
"""


def answer(capsys, *arguments):
    """What `dcil` answers: (status, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        commands.app(args=list(arguments), prog_name="dcil")
    out, err = capsys.readouterr()
    return end.value.code, out, err
