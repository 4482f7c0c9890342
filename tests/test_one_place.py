"""A new score, flag, format and data set are one place each: added to a copy of the package, they
are read, checked, run, recorded and printed like those that it has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import NET
from support.two_paths import two_paths

ROOT = Path(__file__).parent.parent
ADDED = {  # what is added: {file: (text that is found there, what takes its place)}; "": the end
    "score": {
        "words/scores.py": (
            "",
            '''

class Cube(Score):
    """`cube`: |w|^3."""

    def score(self, weight: Tensor) -> Tensor:
        return weight.abs() ** 3
''',
        )
    },
    "flag": {
        "training/options.py": (
            "    max_steps: Annotated[",
            """    patience: Annotated[
        int, Flag("wait N seconds", "N", at_least=0, excludes=("shard",), recorded=str)
    ] = 0
    max_steps: Annotated[""",
        )
    },
    "format": {
        "exporting/files.py": (
            "",
            '''

class Lists:
    """Tensors as nested lists of numbers."""

    def write(self, deployed: Deployed, place: Path) -> str:
        state = deployed.network.state_dict()
        place.write_text(json.dumps({name: t.tolist() for name, t in state.items()}))
        return "wrote lists"

    def recognises(self, place: Path) -> bool:
        return place.suffix == ".lists"

    def read(self, place: Path) -> Artefact:
        lists = json.loads(place.read_text())
        return Artefact(place, {name: torch.tensor(x) for name, x in lists.items()}, None)

    def verify(self, artefact: Artefact) -> list[str]:
        return []
''',
        ),
        "exporting/exporters.py": (
            "        for exporter in (\n",
            """        for exporter in (
            Exporter("lists", "numbers", at="dcil_dsl.exporting.files:Lists", suffix=".lists"),
""",
        ),
    },
    "data set": {
        "data/sources.py": (
            "",
            '''

def greys(folder: None = None, channels: int = 3) -> Dataset:
    """Images of one grey each, darker for the first of two classes."""
    labels = torch.arange(64) % 2
    images = (100 * labels.view(-1, 1, 1, 1) + 50).expand(64, channels, 8, 8).to(torch.uint8)
    part = Tensors(images.contiguous(), labels)
    return in_memory("greys", part, part, ["dark", "light"], channels)
''',
        ),
        "data/datasets.py": (
            "        for record in (\n",
            """        for record in (
            DatasetRecord("greys", "dcil_dsl.data.sources:greys", num_train=64, image_size=8),
""",
        ),
    },
}
VERBS = [
    "check tiny.prune --model net.py:net",
    "check typo.prune",
    "explain cube",
    "plan tiny.prune --model net.py:net",
    "compile --help",
    "compile tiny.prune --model net.py:net --train greys --patience -1",
    "compile tiny.prune --model net.py:net --train greys --patience 3 --shard",
    "compile tiny.prune --model net.py:net --train greys --patience 3 --device cpu --out run",
    "export run --to lists --model net.py:net",
    "verify run/sparse.lists --recipe tiny.prune --model net.py:net",
    "eval run --model net.py:net",
]
PROGRAM = """
import contextlib, io, json, os, sys
import torch
torch.set_num_threads(1)
os.environ["COLUMNS"] = "200"
from dcil_dsl.cli.commands import app
answers = {}
for line in sys.argv[1:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            app(args=line.split(), prog_name="dcil")
        except SystemExit as end:
            status = end.code
    answers[line] = [status, out.getvalue()]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the program with the four additions, and a recipe that uses them."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("dcil_dsl", "grammar", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, (old, new) in (item for added in ADDED.values() for item in added.items()):
        path = copy / "dcil_dsl" / file
        text = path.read_text()
        assert not old or text.count(old) == 1, file
        path.write_text(text.replace(old, new) if old else text + new)
    rule = """model net { classes = 2 }
data greys { batch_size = 16 }
prune Conv2d to 50% { score = cube }"""
    (copy / "tiny.prune").write_text(two_paths(rule))
    (copy / "typo.prune").write_text(two_paths(rule.replace("cube", "cubes")))
    (copy / "net.py").write_text(NET)
    return copy


@pytest.fixture(scope="module")
def answers(folder):
    """{command line: [status, output]}, all by one program: torch takes long to import."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *VERBS],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def the(answers, beginning):
    (found,) = (answer for line, answer in answers.items() if line.startswith(beginning))
    return found


@pytest.mark.parametrize("what, most", [("score", 1), ("flag", 1), ("format", 2), ("data set", 2)])
def test_what_is_added_touches_at_most_two_files(what, most):
    assert len(ADDED[what]) <= most


def test_a_new_score_is_read_suggested_explained_planned_and_stored(answers, folder):
    assert the(answers, "check tiny") == [
        0,
        "tiny.prune: sound for net.py:net, prunes 1 of 2 layers\n",
    ]
    status, text = the(answers, "check typo")
    assert status == 1 and "did you mean `cube`" in text
    assert the(answers, "explain cube")[0] == 0 and "|w|^3" in the(answers, "explain cube")[1]
    assert "cube" in the(answers, "plan")[1]
    plan = json.loads((folder / "run" / "plan.json").read_text())
    assert plan["groups"][0]["score"]["word"] == "cube"


def test_a_new_flag_is_in_the_help_checked_refused_and_recorded(answers, folder):
    help = " ".join(the(answers, "compile --help")[1].split())
    assert "--patience" in help and "wait N seconds; not with --shard" in help
    lines = [line for line in answers if "--patience" in line]
    wrong, refused = answers[lines[0]], answers[lines[1]]
    assert wrong[0] == refused[0] == 2
    assert "Invalid value for '--patience'" in wrong[1] and "Traceback" not in wrong[1]
    assert "--shard does not go with --patience 3" in refused[1]
    assert json.loads((folder / "run" / "command.json").read_text())["patience"] == "3"


def test_a_new_format_is_written_read_and_proved(answers, folder):
    status, text = the(answers, "export")
    assert status == 0 and "wrote lists" in text and (folder / "run" / "sparse.lists").is_file()
    status, text = the(answers, "verify run/sparse.lists")
    assert status == 0, text


def test_a_new_data_set_is_trained_and_evaluated_by_its_name(answers):
    compiled = next(answer for line, answer in answers.items() if line.endswith("--out run"))
    assert compiled[0] == 0, compiled[1]
    assert the(answers, "eval run")[0] == 0
