"""Files from elsewhere run nothing: each of them tries to make a file, and none is made."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_job import RECIPE, call, job, net, own, short_run

from dcil_dsl.compiler import compile_plan
from dcil_dsl.diagnostics import InputError, RecipeError
from dcil_dsl.jobs.prepare import prepare
from dcil_dsl.lang import load, loads
from dcil_dsl.model.digest import digest
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.checkpoint import read_file
from dcil_dsl.training.differences import fingerprint
from dcil_dsl.training.run import open_run
from dcil_dsl.zoo import build_model, load_weights

CODE = "import pathlib\npathlib.Path({mark!r}).touch()\n\n\ndef build():\n    return None\n"


class Payload:
    """What pickle calls when it reads this: open(mark, "w")."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return short_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


@pytest.fixture
def mark(tmp_path):
    """The file that must not be there in the end."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists()


def test_unpickling_the_hostile_payload_would_run_its_code(tmp_path):
    """Else nothing here would prove anything."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()
    (tmp_path / "evil.py").write_text(CODE.format(mark=str(tmp_path / "other")))
    with pytest.raises(InputError):
        build_model(f"{tmp_path}/evil.py:build")
    assert (tmp_path / "other").exists()


# -- pickles ---------------------------------------------------------------------------------


def pickled(kind: str, file: Path, model, mark: Path) -> Path:
    """A .pth in torch's format, in its old one, a bare pickle, a whole module."""
    weights = model.state_dict() | {"3.bias": Payload(mark)}
    if kind == "bare":
        file.write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=kind == "zip")
    return file


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_pickle_as_weights_is_refused(folder, mark, kind, suffix, capsys):
    file = pickled(kind, folder / f"evil{suffix}", net(folder), mark)
    with pytest.raises(InputError, match="could run code when loaded|cannot be read"):
        load_weights(net(folder), str(file), "net.py:Net")
    assert call("verify", file, "--recipe", folder / "tiny.prune", *own(folder)) == 2
    assert call("export", file, "--to", "compact", *own(folder)) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.count("error:") == 2


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused(made, folder, mark, capsys):
    run = folder / "run"
    for file in (run / "checkpoint" / "last.safetensors", run / "sparse.safetensors"):
        pickled("zip", file, net(folder), mark)
    for name in (".metadata", "parts-000000002/.metadata", "parts-000000002/parts.json"):
        file = run / "checkpoint" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps(Payload(mark)))
    os.utime(run / "checkpoint" / "last.safetensors", (0, 0))  # the parts are newer, or older
    for _ in range(2):
        assert call(*job(made), "--out", run, "--resume", "--quiet") == 2
        assert "is damaged" in capsys.readouterr().err
        for verb in (["eval"], ["export", "--to", "pth"], ["export", "--to", "compact"]):
            assert call(verb[0], run, *verb[1:], *own(folder)) == 2
        assert call("verify", run) == 2
        shutil.rmtree(run / "checkpoint" / "parts-000000002", ignore_errors=True)
    assert "Traceback" not in capsys.readouterr().err


def test_timm_is_not_asked_to_load_a_file_that_a_recipe_names(folder, mark):
    pytest.importorskip("timm")
    file = pickled("old", folder / "evil.pth", net(folder), mark)
    for option in ("checkpoint_path", "pretrained_cfg", "pretrained"):
        with pytest.raises(InputError, match=f"dcil sets the option `{option}` itself"):
            build_model("timm:test_vit", 10, {option: str(file)})


# -- names that would be code ------------------------------------------------------------------


def forged_plan(folder: Path, **model) -> None:
    """Another model in the plan of the run, in a checkpoint and a folder that fit to it."""
    for name in ("plan.json", "command.json"):
        file = folder / "run" / name
        stored = json.loads(file.read_text())
        stored["model"] = stored["model"] | model if name == "plan.json" else model["name"]
        file.write_text(json.dumps(stored))
    run = open_run(folder / "run")
    tensors, header = read_file(run.checkpoint)
    header["plan"] = fingerprint(run.read_plan())
    save_file(tensors, run.checkpoint, header | {"digest": digest(tensors, header)})
    run.weights.unlink()


FORGED = [
    {"name": "evil.py:build"},
    {"name": "evil:build"},
    {"name": "builtins:open", "options": {"file": "mark", "mode": "w"}},
    {"name": "os:mkdir", "options": {"path": "mark"}},
]


@pytest.mark.parametrize("model", FORGED, ids=lambda model: model["name"])
def test_a_run_folder_cannot_ask_to_run_code(folder, mark, model, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    if "options" in model:
        model = model | {
            "options": {n: v.replace("mark", str(mark)) for n, v in model["options"].items()}
        }
    forged_plan(folder, **model)
    verbs = [
        ["eval", "run"],
        ["export", "run", "--to", "pth"],
        ["export", "run", "--to", "compact"],
        ["sensitivity", "run"],
        ["verify", "run", "--recipe", "tiny.prune"],
    ]
    for verb in verbs:
        assert call(*verb) == 2, verb
        assert f"somebody's own code, {model['name']}, which a file" in capsys.readouterr().err


@pytest.mark.parametrize("model", FORGED[:2], ids=lambda model: model["name"])
def test_an_exported_file_cannot_ask_to_run_code(folder, mark, model, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    file = folder / "run" / "sparse.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    stored = json.loads(header["dcil"])
    stored["model"] |= model
    save_file(load_file(file), "alone.safetensors", header | {"dcil": json.dumps(stored)})
    assert call("export", "alone.safetensors", "--to", "compact") == 2
    assert call("verify", "alone.safetensors", "--recipe", "tiny.prune") == 2
    assert capsys.readouterr().err.count("which a file cannot ask to run") == 2


def strings_of(value) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(strings_of, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(strings_of, value)) if value else set()
    return {value} if isinstance(value, str) else set()


@pytest.mark.parametrize(
    "code",
    [
        """x") if open("{mark}", "w") else (\"""",
        """x') if open('{mark}', 'w') else ('""",
        """x\nopen("{mark}", "w")\n""",
        """{{open('{mark}', 'w')}}""",
        '''"""+str(open("{mark}", "w"))+"""''',
    ],
)
def test_no_string_of_a_plan_becomes_code(made, mark, code):
    """torch.fx writes names into Python text, which it then runs."""
    text = json.dumps(json.loads((made / "run" / "plan.json").read_text()))
    for string in sorted(strings_of(json.loads(text))):
        hostile = json.dumps(code.replace("{mark}", str(mark)))
        forged = text.replace(json.dumps(string), hostile)
        try:
            dual = compile_plan(Plan.from_json(forged), net(made))
            dual.begin_step(2)
            dual(torch.zeros(2, 3, 32, 32))
        except Exception:  # refused by whatever meets it first; that it did nothing is the point
            pass
        assert not mark.exists(), string


# -- recipes -----------------------------------------------------------------------------------

STRINGS = [
    "__import__('pathlib').Path('{mark}').touch()",
    "{{open('{mark}', 'w')}}",
    "${{open('{mark}', 'w')}}",
    "$(touch {mark})",
    "`touch {mark}`",
    "!!python/object/apply:os.system [touch {mark}]",
]


@pytest.mark.parametrize("string", STRINGS)
def test_a_string_of_a_recipe_is_a_string(mark, string):
    string = string.replace("{mark}", str(mark))
    recipe = loads(RECIPE.replace("two layers", string))
    assert recipe.about.title == string
    with pytest.raises(RecipeError):
        loads(RECIPE.replace("prune Conv2d to", f'prune "{string}" to').replace("90%", string))


@pytest.mark.parametrize("path", ["../evil.py", "/etc/passwd", "../../../../etc/hostname", "run"])
def test_a_recipe_that_extends_what_is_no_recipe_is_refused(folder, mark, path):
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    (folder / "deep").mkdir()
    recipe = folder / "deep" / "hostile.prune"
    recipe.write_text(RECIPE.replace("recipe tiny {", f'recipe tiny extends "{path}" {{'))
    with pytest.raises(RecipeError):
        load(recipe)


def test_a_recipe_names_no_folder_to_write_to(folder):
    for name in ("../climbs", "/tmp/climbs", "a/b", "..", "a b"):
        with pytest.raises(RecipeError):
            loads(RECIPE.replace("recipe tiny", f"recipe {name}"))


@pytest.mark.parametrize("option", ["os.system", "__class__", "__init__"])
def test_a_recipe_gives_a_model_no_option_that_it_does_not_take(option):
    text = RECIPE.replace("classes = 10", f'classes = 10\n  {option} = "touch mark"')
    with pytest.raises((RecipeError, InputError)):
        prepare(loads(text), "dcil:resnet20", warn=print, note=print, steps_per_epoch=2)


# -- links -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "report.json",
        "sparse.safetensors",
        "checkpoint/last.safetensors",
        "checkpoint/previous.safetensors",
        "checkpoint/.last.safetensors.draft",
        "checkpoint/.previous.safetensors.draft",
        ".metrics.jsonl.draft",
        ".report.json.draft",
    ],
)
def test_what_a_link_in_a_run_folder_points_to_is_not_written_to(made, folder, tmp_path, name):
    """A run folder from elsewhere, continued here."""
    victim, link = tmp_path / "victim", folder / "run" / name
    shutil.copy(link, victim) if link.exists() else victim.write_text("mine")
    before = victim.read_bytes()
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    assert call(*job(made), "--out", folder / "run", "--resume", "--quiet") == 0
    assert victim.read_bytes() == before
