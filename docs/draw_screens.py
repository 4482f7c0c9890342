"""Draw pictures of a terminal from what the commands really print: run, plan and live screens.

    python docs/draw_screens.py

In:   the recipe and the network of docs/how-to/own-model.md, the program `dcil`, and tmux, in which
      a training runs whose screen is taken at half of its steps.
Out:  docs/run.svg, plan.svg, live-100.svg and live-60.svg. Times are of the machine that draws.
Not:  no text of its own: each line is a command or its output.
"""

import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
PAGE = (HERE / "how-to" / "own-model.md").read_text(encoding="utf-8")
MODEL = ["--model", "net.py:small_net"]
# Without the web fonts that rich would link to: a reader's own monospace font does.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
WIDTH = 98
BOX = "\u250c\u2502\u2514"  # what the lines of the table of results begin with


def run(folder: Path, *words: str) -> str:
    """What `dcil` prints, both streams in their order."""
    return subprocess.run(
        [sys.executable, "-m", "dcil_dsl", *words],
        cwd=folder,
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ).stdout


def draw(file: str, title: str, screens: list[tuple[str, list[str]]]) -> None:
    """screens  pairs of a command and the lines below it"""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    for command, lines in screens:
        console.print(Text("$ ", "bold green") + Text(command, "bold"))
        for line in lines:
            style = "cyan" if re.search(r"holds|sparsity (measured|asked)|top1", line) else ""
            console.print(Text(line, style), soft_wrap=False)
    save(console, file, title)


def save(console: Console, file: str, title: str) -> None:
    svg = console.export_svg(title=title, code_format=FORMAT, unique_id=Path(file).stem)
    svg = "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
    (HERE / file).write_text(svg, encoding="utf-8")


def live(folder: Path, width: int) -> list[str]:
    """The lines of a screen of this width in the middle of a training, with their colours."""
    session = f"dcil-{width}"
    words = ["compile", "small.prune", *MODEL, "--train", "digits", "--out", f"runs/{width}"]
    command = [sys.executable, "-m", "dcil_dsl", *words]
    size = ["-x", str(width), "-y", "30"]
    tmux = ["tmux", "-L", session]
    subprocess.run([*tmux, "new-session", "-d", "-s", session, *size, *command], cwd=folder)
    best: list[str] = []
    while True:
        taken = subprocess.run(
            [*tmux, "capture-pane", "-p", "-e", "-t", session], capture_output=True, text=True
        )
        if taken.returncode:  # the training has ended, and the session with it
            return best
        lines = taken.stdout.rstrip().splitlines()
        bar = (
            re.search(r"(\d+)/(\d+).*ETA .*\d:\d\d", Text.from_ansi(lines[-1]).plain)
            if lines
            else None
        )
        if bar is not None and int(bar[1]) < 0.7 * int(bar[2]):
            best = lines
        time.sleep(0.1)


def draw_live(folder: Path, width: int) -> None:
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False)
    screen = Text.from_ansi("\n".join(live(folder, width)))  # colours go on from line to line
    for line in screen.split("\n"):
        if line.plain.strip():
            console.print(line, soft_wrap=False)
    save(console, f"live-{width}.svg", f"{width} columns")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for mark, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL):
            (folder / mark).write_text(text, encoding="utf-8")
        train = ["compile", "small.prune", *MODEL, "--train", "digits", "--out", "runs/small"]
        printed = run(folder, *train).splitlines()
        epochs = [line for line in printed if re.match(r"epoch| *\d+/\d+ ", line)]
        table = [line for line in printed if line and line[0] in BOX]
        proof = run(folder, "verify", "runs/small/sparse.safetensors").splitlines()
        draw(
            "run.svg",
            "dcil",
            [
                (
                    "dcil-compile small.prune --model net.py:small_net --train digits "
                    "--out runs/small",
                    [*epochs[:3], "...", *epochs[-2:], *table],
                ),
                ("dcil verify runs/small/sparse.safetensors", proof[1:]),
            ],
        )
        for width in (100, 60):
            draw_live(folder, width)
        steps = ["--steps-per-epoch", "12"]
        recipe = (folder / "small.prune").read_text(encoding="utf-8")
        named = recipe.replace(
            "prune Conv2d", "model small_net { classes = 10 }\n\nprune Conv2d", 1
        )
        (folder / "small.prune").write_text(named, encoding="utf-8")
        plan = run(folder, "plan", "small.prune", *MODEL, *steps).splitlines()
        draw(
            "plan.svg",
            "dcil plan",
            [
                (
                    "dcil plan small.prune --model net.py:small_net --steps-per-epoch 12",
                    plan[: next(i for i, line in enumerate(plan) if line.startswith("private"))],
                ),
            ],
        )


if __name__ == "__main__":
    main()
