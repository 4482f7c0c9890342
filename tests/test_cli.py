"""The command line: what each verb prints, and the status it ends with. Nothing is trained here."""

import errno
import importlib
import inspect
import json
import re
from functools import partial

import pytest
from support.command_line import NET, answer

from dcil_dsl import __version__
from dcil_dsl.cli import commands as cli
from dcil_dsl.cli.errors import status_of
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.options import flags

RECIPE = """language 1

recipe tiny { title = "two layers" }

let target = 50%

data synthetic { batch_size = 64 }

prune Conv2d, Linear to global(target) {
  schedule = linear(0ep..1ep)
  refresh  = 2 steps
}

mix {
  path sparse = masked
  path dense  = full

  update kept   by sparse
  update pruned by dense

  private BatchNorm2d

  loss cross_entropy(sparse)
  loss cross_entropy(dense)

  deploy sparse
}

train {
  epochs    = 2ep
  optimizer = sgd(lr=0.1)
}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with tiny.prune and net.py in it, which is the current one."""
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DCIL_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def dcil(here, capsys):
    """dcil("check", "tiny.prune") -> (status, stdout, stderr)."""

    return partial(answer, capsys)


def test_a_sound_recipe_is_called_sound(dcil):
    assert dcil("check", "tiny.prune") == (0, "tiny.prune: sound\n", "")


def test_the_program_says_its_version(dcil):
    assert dcil("--version") == (0, f"dcil {__version__}\n", "")


def test_a_sound_recipe_for_a_model_says_how_much_of_it_is_pruned(dcil):
    status, out, err = dcil("check", "tiny.prune", "--model", "net.py:net")
    assert (status, out) == (0, "tiny.prune: sound for net.py:net, prunes 2 of 2 layers\n")


def test_check_takes_the_length_of_an_epoch_that_it_asks_for(dcil, here):
    text = RECIPE.replace("synthetic", "imagefolder").replace("2 steps", "2 steps freeze = 9 steps")
    (here / "tiny.prune").write_text(text)
    status, _, err = dcil("check", "tiny.prune", "--model", "net.py:net")
    assert "--steps-per-epoch" in err and status == 1 and "E305" in err
    status, _, err = dcil("check", "tiny.prune", "--model", "net.py:net", "--steps-per-epoch", "7")
    assert (status, err) == (0, "")
    assert dcil("check", "tiny.prune", "--steps-per-epoch", "7")[0] == 2  # it would mean nothing


def test_a_wrong_recipe_is_status_1_with_place_code_line_and_caret(dcil, here):
    (here / "tiny.prune").write_text(RECIPE.replace("momentum", "").replace("lr=0.1", "lrr=0.1"))
    status, out, err = dcil("check", "tiny.prune")
    assert status == 1 and out == ""
    first = err.splitlines()[0]
    assert first.startswith("tiny.prune:31:") and ": error[E" in first
    assert "optimizer = sgd(lrr=0.1)" in err and "^" in err


def test_concise_is_one_line_a_diagnostic(dcil, here):
    (here / "tiny.prune").write_text(RECIPE.replace("lr=0.1", "lrr=0.1"))
    status, _, err = dcil("check", "tiny.prune", "--concise")
    assert status == 1
    assert all(line.startswith("tiny.prune:31:") for line in err.splitlines())


def test_a_selector_that_matches_nothing_is_status_1_before_anything_is_built(dcil, here):
    (here / "tiny.prune").write_text(RECIPE.replace("Conv2d, Linear", "Conv3d"))
    for verb in ("check", "plan", "compile", "graph"):
        status, _, err = dcil(verb, "tiny.prune", "--model", "net.py:net")
        assert status == 1 and "error[E301]" in err, verb


def test_a_missing_recipe_is_a_wrong_command(dcil):
    status, out, err = dcil("check", "tine.prune")
    assert status == 2 and "tine.prune" in err and "tiny.prune" in err


def test_a_run_folder_in_a_recipes_place_is_reported_with_the_recipe_in_it(dcil, here):
    (here / "run").mkdir()
    (here / "run" / "resolved.prune").write_text(RECIPE)
    status, _, err = dcil("plan", "run", "--model", "net.py:net")
    assert status == 2 and "that of this run is run/resolved.prune" in err
    (here / "a.prune").mkdir()
    status, _, err = dcil("plan", "a.prune", "--model", "net.py:net")
    assert (status, err) == (2, "error: cannot read the recipe a.prune: is a directory\n")


def test_an_unknown_model_is_a_wrong_command_with_the_nearest_name(dcil):
    status, _, err = dcil("plan", "tiny.prune", "--model", "torchvision:resnet_18")
    assert status == 2 and "torchvision:resnet18" in err and "Traceback" not in err


def test_an_unknown_verb_is_a_wrong_command_with_the_nearest(dcil):
    status, _, err = dcil("chek", "tiny.prune")
    assert status == 2 and "there is no verb `chek`; did you mean `check`?" in err
    status, _, err = dcil("quantize")
    assert status == 2 and "the verbs are compile, init, check, fmt" in err


# Verbs that answer without torch.
LIGHT = {"fmt", "recipes", "runs", "compare", "sweep", "import", "lsp"}


@pytest.mark.parametrize("name", [name for name in cli.VERBS if name not in LIGHT])
def test_a_verb_says_on_a_terminal_that_it_loads_torch(name):
    """Within 0.3 s, where the import takes seconds: before anything of the job is imported."""
    module, _, function = cli.VERBS[name].place.partition(":")
    code = inspect.getsource(getattr(importlib.import_module(module), function))
    said = re.search(r"say_loading\(\)|prepare_for\(", code)
    jobs = re.search(
        r"from dcil_dsl\.(jobs\.(?!check_files|recipe_files)|training\.\w+ import train)", code
    )
    assert said is not None and (jobs is None or jobs.start() > said.start() or name == "explain")


def test_the_help_of_the_main_verb_has_a_heading_for_each_topic(dcil):
    status, out, _ = dcil("compile", "-h")
    assert status == 0 and out == dcil("compile", "--help")[1]
    heads = [line for line in out.splitlines() if line[:1].isalpha() and line.endswith(":")]
    topics = [f"{topic}:" for topic in dict.fromkeys(flag.topic for flag in flags().values())]
    assert heads == ["Arguments:", "Options:", *topics]
    assert all(out.count(f"\n  {flag.name} ") == 1 for flag in flags().values())


def test_every_verb_of_the_table_has_a_command_with_help(dcil):
    for name in cli.VERBS:
        status, out, _ = dcil(name, "--help")
        assert status == 0 and out.startswith(f"Usage: dcil {name} "), name


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "tiny.prune"),
        ("plan", "tiny.prune", "--model", "net.py:net", "--modle", "x"),
        ("prune", "tiny.prune"),
        ("check",),
        ("compile", "tiny.prune", "--model", "net.py:net", "--max-steps", "0"),
        ("compile", "tiny.prune", "--model", "net.py:net", "--precision", "fp8"),
        ("compile", "tiny.prune", "--model", "net.py:net", "--out", "x"),
        ("compile", "tiny.prune", "--model", "net.py:net", "--train", "synthetic", "--resume"),
        ("compile", "tiny.prune", "--model", "net.py:net", "--train", "sinthetic"),
        ("compile", "tiny.prune", "--model", "net.py:net", "--train", "digits", "--device", "tpu"),
        (
            "compile",
            "tiny.prune",
            "--model",
            "net.py:net",
            "--train",
            "digits",
            "--device",
            "cuda:99",
        ),
        ("check", "tiny.prune", "--set", "target"),
        ("check", "tiny.prune", "--set", "target=1%", "--set", "target=2%"),
        ("eval", "nowhere"),
        ("eval", "."),
        ("verify", "nowhere.safetensors"),
        ("verify", "net.py"),
        ("verify", "net.py", "--steps-per-epoch", "3"),
        ("export", "nowhere", "--to", "pth"),
        ("explain", "E999"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_status_2_without_a_traceback(dcil, here, arguments):
    before = sorted(here.rglob("*"))
    status, out, err = dcil(*arguments)
    assert status == 2 and out == "" and err
    assert "Traceback" not in err
    assert [file for file in sorted(here.rglob("*")) if "__pycache__" not in file.parts] == [
        file for file in before if "__pycache__" not in file.parts
    ]


def test_data_that_are_missing_say_where_and_how_and_leave_nothing_behind(dcil, here):
    before = sorted(here.iterdir())
    status, _, err = dcil(
        "compile", "tiny.prune", "--model", "torchvision:resnet50", "--train", "imagenet"
    )
    assert status == 2
    assert str(here / ".cache" / "dcil" / "imagenet") in err
    assert "train/<class>" in err and "--data DIR" in err
    assert sorted(here.iterdir()) == before


def test_plan_prints_every_layer_with_the_line_that_claimed_it(dcil):
    status, out, _ = dcil("plan", "tiny.prune", "--model", "net.py:net")
    assert status == 0
    lines = out.splitlines()
    first = next(line for line in lines if line.startswith("0 "))
    assert first.split() == ["0", "Conv2d", "8x3x3x3", "216", "97.7%", ":9", "50%", "of", "all"]
    assert "  50% of 536 weights in 2 layers, one budget for all; 268 kept at the end" in lines
    assert "  pruned weights learn from dense" in lines
    assert max(map(len, lines)) <= 100


def test_plan_as_json_is_the_plan(dcil):
    status, out, _ = dcil(
        "plan", "tiny.prune", "--model", "net.py:net", "--json", "--set", "target=75%"
    )
    plan = Plan.from_json(out)
    assert status == 0 and json.loads(out)["format"] == 2
    assert json.loads(out)["facts"]["num_weights"] == sum(x.num_weights for x in plan.layers)
    assert plan.groups[0].sparsity == 0.75
    assert plan.recipe.overrides == {"target": "75%"}
    assert plan.model.name == "net.py:net" and plan.model.classes == 10
    assert plan.steps_per_epoch == 8  # 512 synthetic images in batches of 64


def test_an_epoch_of_unknown_length_is_reported_and_can_be_given(dcil, here):
    (here / "tiny.prune").write_text(RECIPE.replace("data synthetic", "data imagefolder"))
    _, out, err = dcil("plan", "tiny.prune", "--model", "net.py:net", "--json")
    assert "--steps-per-epoch" in err and Plan.from_json(out).steps_per_epoch == 1000
    _, out, err = dcil(
        "plan", "tiny.prune", "--model", "net.py:net", "--json", "--steps-per-epoch", "7"
    )
    assert "--steps-per-epoch" not in err and Plan.from_json(out).steps_per_epoch == 7


def test_precision_and_seed_of_the_command_line_stand_in_the_plan(dcil, monkeypatch):
    seen = []
    monkeypatch.setattr("dcil_dsl.plan.show.show_plan", lambda plan, page: seen.append(plan) or "")
    status, _, _ = dcil(
        "compile", "tiny.prune", "--model", "net.py:net", "--precision", "bf16", "--seed", "5"
    )
    (plan,) = seen
    assert status == 0 and plan.train.precision == "bf16" and plan.train.seed == 5
    assert plan.recipe.overrides == {"train.precision": "bf16", "train.seed": "5"}


def test_a_model_other_than_the_recipes_own_is_reported(dcil, here):
    (here / "tiny.prune").write_text(RECIPE.replace("data syn", "model resnet18 {}\n\ndata syn"))
    _, _, err = dcil("plan", "tiny.prune", "--model", "net.py:net")
    assert "note: the recipe was written for the model `resnet18`; this is net.py:net" in err


def test_compile_prints_the_plan_and_counts_the_graph(dcil):
    status, out, _ = dcil("compile", "tiny.prune", "--model", "net.py:net")
    assert status == 0
    assert "layers in execution order" in out
    assert "calls for 2 paths" in out
    assert "2 masks of 536 bytes; 16 more parameters in the twins of private modules" in out


def test_graph_prints_the_code_for_training_and_for_evaluation(dcil):
    status, out, _ = dcil("graph", "tiny.prune", "--model", "net.py:net")
    assert status == 0
    assert "# training, step 0 to the end: sparse, dense" in out
    assert "# evaluation: sparse, dense" in out
    assert out.count("def forward") == 2


def test_fmt_puts_a_file_in_canonical_form_once(dcil, here):
    (here / "tiny.prune").write_text(RECIPE.replace("  path sparse", "        path   sparse"))
    assert dcil("fmt", "tiny.prune", "--check") == (1, "tiny.prune: is not in canonical form\n", "")
    assert "        path   sparse" in (here / "tiny.prune").read_text()
    assert dcil("fmt", "tiny.prune")[0] == 0
    assert "        path   sparse" not in (here / "tiny.prune").read_text()
    assert dcil("fmt", "tiny.prune", "--check") == (0, "", "")


def test_fmt_writes_no_file_where_one_of_them_does_not_parse(dcil, here):
    (here / "tiny.prune").write_text(RECIPE.replace("  path sparse", "        path   sparse"))
    (here / "broken.prune").write_text("language 1\nmix {")
    before = (here / "tiny.prune").read_bytes()
    status, out, err = dcil("fmt", "tiny.prune", "broken.prune")
    assert status == 1 and "broken.prune:2:" in err
    assert (here / "tiny.prune").read_bytes() == before
    assert sorted(file.name for file in here.iterdir()) == ["broken.prune", "net.py", "tiny.prune"]


def test_fmt_of_bytes_that_are_no_text_is_a_wrong_recipe(dcil, here):
    (here / "tiny.prune").write_bytes(b"language 1\n\xff\xfe")
    status, _, err = dcil("fmt", "tiny.prune")
    assert status == 1 and "tiny.prune:2:1: error[E110]" in err
    assert (here / "tiny.prune").read_bytes() == b"language 1\n\xff\xfe"


def test_fmt_keeps_permissions_and_follows_links(dcil, here):
    (here / "tiny.prune").write_text(
        "# a remark\n" + RECIPE.replace("  path sparse", "   path sparse")
    )
    (here / "tiny.prune").chmod(0o640)
    (here / "link.prune").symlink_to("tiny.prune")
    assert dcil("fmt", "link.prune")[0] == 0
    assert (here / "link.prune").is_symlink()
    assert (here / "tiny.prune").stat().st_mode & 0o777 == 0o640
    assert (here / "tiny.prune").read_text().startswith("# a remark\n")


def test_explain_says_what_a_code_means(dcil):
    status, out, _ = dcil("explain", "E301")
    assert status == 0 and "E301" in out and "prune" in out


def test_explain_tells_the_story_of_a_layer_where_a_recipe_and_a_model_are_given(dcil):
    status, out, _ = dcil("explain", "0", "tiny.prune", "--model", "net.py:net")
    assert status == 0 and out.startswith("0            Conv2d(3, 8")
    assert "tiny.prune:9  prune Conv2d, Linear to global(target)" in out


def test_explain_says_what_is_missing_to_tell_of_a_layer(dcil):
    status, _, err = dcil("explain", "0", "--model", "net.py:net")
    assert status == 2 and "a recipe is missing" in err
    status, _, err = dcil("explain", "0", "tiny.prune")
    assert status == 2 and "--model SPEC is missing" in err
    status, _, err = dcil("explain", "E301", "--set", "a=1")
    assert status == 2 and "--set: only for a layer" in err


def test_explain_of_a_layer_that_is_missing_is_a_wrong_command(dcil):
    status, _, err = dcil("explain", "00", "tiny.prune", "--model", "net.py:net")
    assert status == 2 and "has no layer `00`" in err and "`dcil plan` lists the layers" in err


def test_what_we_did_not_foresee_is_status_70_and_called_our_bug(dcil, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("in the dark")

    monkeypatch.setattr("dcil_dsl.lang.loads", fail)
    status, _, err = dcil("check", "tiny.prune")
    assert status == 70
    assert "Traceback" in err and "this is a bug in dcil_dsl" in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no more"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_too_little_memory_is_the_machines_and_no_bug(dcil, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("dcil_dsl.lang.loads", fail)
    status, _, err = dcil("check", "tiny.prune")
    assert status == 2 and "Traceback" not in err
    assert err.startswith("error: out of memory: ") and "`batch_size`" in err


def test_an_interrupt_is_status_130_without_a_traceback(dcil, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dcil_dsl.lang.loads", stop)
    status, _, err = dcil("check", "tiny.prune")
    assert status == 130 and "Traceback" not in err


def test_the_second_program_is_the_verb_compile(here, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dcil-compile", "tiny.prune", "--model", "net.py:net"])
    with pytest.raises(SystemExit) as end:
        cli.main_compile()
    assert end.value.code == 0
    assert "calls for 2 paths" in capsys.readouterr().out


def test_a_file_that_may_not_be_looked_at_is_named_without_a_traceback(capsys):
    assert status_of(PermissionError(13, "Permission denied", "locked/run"), False) == 2
    assert capsys.readouterr().err == "error: locked/run: Permission denied\n"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_too_small_to_begin_with_is_no_fault_of_ours(error, capsys):
    assert status_of(error, False) == 2
    assert "error: out of memory: " in capsys.readouterr().err
