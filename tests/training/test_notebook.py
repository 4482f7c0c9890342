"""What a notebook shows of a run: rows that stay, and a bar that moves, in one output."""

from __future__ import annotations

import io
import re
import sys
import types

from rich.console import Console
from support.tiny_run import tiny_train

from dcil_dsl.diagnostics.html import preformatted
from dcil_dsl.jobs.train import Run
from dcil_dsl.training import notebook
from dcil_dsl.training.notebook import NotebookScreen
from dcil_dsl.training.progress import Display, make_display


def test_a_run_shows_rows_that_stay_and_a_bar_that_is_gone_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "SECONDS_BETWEEN_UPDATES", 0.0)
    shown: list[str] = []
    display = Display("notebook", Console(file=io.StringIO()), NotebookScreen(shown.append))
    tiny_train(tmp_path / "run", display=display, max_steps=10)
    assert [step for html in shown for step in re.findall(r'value="(\d+)" max="10"', html)][
        -1
    ] == "10"
    moving = [html for html in shown if "<progress" in html]
    assert len(moving) == 10 and re.search(r"7/10 ETA \d:\d\d:\d\d  epoch 2/4", moving[6])
    assert "<progress" not in shown[-1]
    rows = re.sub("<.*?>", "", shown[-1]).splitlines()
    assert rows[0].split()[0] == "epoch" and [row.split()[0] for row in rows[1:]] == ["1/4", "2/4"]


def test_the_bar_moves_some_times_a_second_whatever_the_number_of_steps():
    shown: list[str] = []
    screen = NotebookScreen(shown.append)
    screen.begin(0)
    for step in range(1000):
        screen.move(step, 10**9, "words")
    assert len(shown) < 100


def test_text_does_not_become_markup():
    shown: list[str] = []
    screen = NotebookScreen(shown.append)
    screen.add("<b>")
    screen.begin(0)
    screen.move(1, 2, "<i>")
    assert "<b>" not in shown[-1] and "<i>" not in shown[-1] and "&lt;b&gt;" in shown[-1]


def test_in_a_notebook_the_display_is_one_output_that_is_replaced(monkeypatch):
    replaced: list[str] = []

    class Handle:
        def update(self, html):
            replaced.append(html)

    module = types.ModuleType("IPython.display")
    module.HTML = str
    module.display = lambda html, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    display = make_display(console=Console(file=io.StringIO(), force_jupyter=True))
    assert display.mode == "notebook"
    assert replaced == []  # the summary of the run comes first
    display.note("a fact")
    assert len(replaced) == 1 and "a fact" in replaced[0]


def test_the_table_of_a_run_is_its_html_in_a_notebook_too(tmp_path, monkeypatch):
    """rich would show it as another output, and leave the text of the object empty."""
    run = object.__new__(Run)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as ipykernel sets it
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("dcil_dsl.jobs.train.result_table", lambda *given: "[bold]the table[/bold]")
    for name, value in (("folder", types.SimpleNamespace(weights="", report="")),):
        object.__setattr__(run, name, value)
    object.__setattr__(run, "result", None)
    object.__setattr__(run, "plan", None)
    assert run._repr_html_() == preformatted("the table\n")
