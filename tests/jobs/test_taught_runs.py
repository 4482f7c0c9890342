"""Teachers in whole runs: from files, resumed to the bit, refused where they do not fit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.same_runs import assert_same, contents
from support.taught import KL, LOSSES, trained, write_big, write_job
from support.tiny_job import NET, call
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError, RecipeError
from dcil_dsl.jobs.inspect import evaluate_run
from dcil_dsl.zoo import build_model


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    write_job(folder)
    return folder, trained(folder, folder / "run")


def test_a_run_with_teachers_resumes_bit_for_bit(straight, tmp_path):
    folder, run = straight
    for steps in (5, 14):  # in the middle of each epoch of 12 steps
        trained(folder, tmp_path / "run", max_steps=steps, resume=steps > 5)
    trained(folder, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", run.path)


def test_a_checkpoint_has_the_average_and_names_the_network_by_its_digest(straight):
    folder, run = straight
    tensors, _, _ = contents(run.path)
    assert tensors["model/ema__slow.step"] == 23
    assert any(name.startswith("model/ema__slow.network.") for name in tensors)
    assert not any("big" in name for name in tensors)
    big, slow = json.loads((run.path / "plan.json").read_text())["teachers"]
    assert big["network"]["settings"]["source"] == "dcil:small_vit"
    assert len(big["network"]["settings"]["digest"]) == 64
    with safe_open(run.folder.checkpoint, framework="pt") as file:
        named = json.loads(file.metadata()["teachers"])
    assert named == {"big": big["network"]["settings"], "slow": slow["network"]["settings"]}
    assert slow["network"] == {"word": "ema", "settings": {"path": "sparse", "decay": 0.9}}


def test_the_exported_file_is_that_of_a_run_without_teachers(straight):
    folder, run = straight
    fresh = build_model(f"{folder}/net.py:Net", 10)
    assert sorted(load_file(run.folder.weights)) == sorted(fresh.state_dict())
    assert run.result.sparsity_measured == pytest.approx(0.8, abs=1e-3)


def test_a_finished_run_is_evaluated_and_exported_without_the_file_of_its_teacher(
    straight, tmp_path
):
    folder, _ = straight
    write_job(tmp_path)
    run = trained(tmp_path, tmp_path / "run", max_steps=2)
    (tmp_path / "big.safetensors").unlink()
    found = evaluate_run(run.path, model=f"{tmp_path}/net.py:Net", device="cpu", workers=0)
    assert found.accuracy == pytest.approx(run.result.accuracies["sparse"])


def test_a_changed_file_of_a_teacher_is_refused_on_resume(tmp_path):
    write_job(tmp_path)
    trained(tmp_path, tmp_path / "run", max_steps=2)
    write_big(tmp_path, seed=6)
    with pytest.raises(InputError, match="another plan and cannot be resumed") as caught:
        trained(tmp_path, tmp_path / "run", resume=True)
    assert "teachers[0].network.digest" in caught.value.help


def test_a_missing_file_of_a_teacher_is_an_error_at_its_line(tmp_path):
    recipe = write_job(tmp_path)
    (tmp_path / "big.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        trained(tmp_path, tmp_path / "run")
    (found,) = caught.value.diagnostics
    assert (found.code, found.span.line) == ("E331", 7)
    assert str(recipe.parent / "big.safetensors") in found.message
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_an_error_at_the_loss(tmp_path):
    write_job(tmp_path)
    write_big(tmp_path, classes=12)
    with pytest.raises(RecipeError) as caught:
        trained(tmp_path, tmp_path / "run")
    (found,) = caught.value.diagnostics
    assert (found.code, found.span.line) == ("E331", 11)
    assert found.message == (
        "`big` does not fit `kl`: the teacher returns 12 for an example, the student 10"
    )


class Rude(nn.Module):
    """Changes its inputs."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x):
        return self.fc(x.mul_(2).mean((2, 3)))


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "the network of `big` is not given"),
        ({"big": Rude()}, "the network of `big` changes its inputs in place"),
        ({"big": nn.Linear(7, 10)}, "the network of `big` does not take what the model is given"),
    ],
)
def test_a_network_that_cannot_teach_is_an_error_at_its_line(given, message, tmp_path):
    write_job(tmp_path, big="path big = network()")
    with pytest.raises(RecipeError) as caught:
        trained(tmp_path, tmp_path / "run", teachers=given)
    assert [(d.code, d.span.line, d.message) for d in caught.value.diagnostics] == [
        ("E331", 7, message)
    ]


def test_a_network_that_the_recipe_names_cannot_be_given_too(tmp_path):
    write_job(tmp_path)
    with pytest.raises(RecipeError, match="the recipe names the network of `big`"):
        trained(tmp_path, tmp_path / "run", teachers={"big": nn.Linear(3, 10)})
    with pytest.raises(InputError, match="no teacher `bigg` that is a network"):
        trained(tmp_path, tmp_path / "run", teachers={"bigg": nn.Linear(3, 10)})
    with pytest.raises(InputError, match="it would have random weights"):
        trained(tmp_path, tmp_path / "run", teachers={"big": "dcil:resnet20"})


OWN = (
    NET
    + """

def teacher():
    import torch
    from safetensors.torch import load_file
    from dcil_dsl.zoo import build_model
    net = build_model("dcil:small_vit", 10)
    net.load_state_dict(load_file(__file__.replace("net.py", "big.safetensors")))
    return net
"""
)


def test_a_network_of_own_code_teaches_as_the_same_one_from_its_file(straight, tmp_path):
    folder, run = straight
    write_job(tmp_path, big="path big = network()")
    (tmp_path / "net.py").write_text(OWN)
    own = trained(tmp_path, tmp_path / "run", teachers={"big": f"{tmp_path}/net.py:teacher"})
    tensors, others = contents(own.path)[0], contents(run.path)[0]
    assert all(torch.equal(tensors[name], others[name]) for name in others)


def test_the_folder_of_a_run_is_the_weights_of_a_teacher(straight, tmp_path):
    folder, run = straight
    first = dcil.train(
        str(write_job(tmp_path, big="", losses="", slow="")),
        "dcil:resnet20",
        "digits",
        out=tmp_path / "first",
        max_steps=2,
        workers=0,
        warn=lambda _: None,
    )
    big = 'path big = network("dcil:resnet20", weights="first")'
    write_job(tmp_path, big=big, losses=KL, slow="")
    plan = trained(tmp_path, tmp_path / "run", max_steps=2).plan
    settings = plan.teachers[0].network
    from dcil_dsl.model.digest import digest

    assert settings.digest == digest(first.model.state_dict())


def test_the_model_starts_from_the_same_weights_with_a_teacher_as_without(tmp_path):
    write_job(tmp_path / "with")
    write_job(tmp_path / "without", big="", slow="", losses="")
    starts = []
    for name in ("with", "without"):
        recipe = dcil.load(tmp_path / name / "taught.prune")
        from dcil_dsl.jobs.prepare import no_note, no_warning, prepare

        spec = f"{tmp_path}/{name}/net.py:Net"
        prepared = prepare(recipe, spec, warn=no_warning, note=no_note, teachers={})
        starts.append((prepared.traced.model.state_dict(), torch.rand(3)))
    (one, drawn), (other, drawn_too) = starts
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert torch.equal(drawn, drawn_too)


def test_an_average_goes_on_where_the_recipe_that_adds_it_is_resumed_anyway(tmp_path):
    write_job(tmp_path, slow="", losses=KL)
    trained(tmp_path, tmp_path / "run", max_steps=12)
    write_job(tmp_path, losses=LOSSES)
    run = trained(tmp_path, tmp_path / "run", anyway=True)
    assert contents(run.path)[0]["model/ema__slow.step"] == 23
    write_job(tmp_path, slow="", losses=KL)
    assert not [name for name in contents(run.path)[0] if "teacher" in name]
    trained(tmp_path, tmp_path / "run", anyway=True)
    assert "model/ema__slow.step" not in contents(run.path)[0]


def test_a_teacher_costs_what_its_products_cost(straight):
    _, run = straight
    big, slow = run.plan.teachers
    assert slow.size == 1 and big.size > 1
    phases = {phase.window.start: phase.teachers for phase in run.plan.phases}
    assert phases == {0: ("big",), 3: ("big", "slow")}
    expected = 1 + big.size / 3 + (1 / 3) * 21 / 24
    assert run.result.cost == pytest.approx(expected)


SCENES = """language 1
data {data} {{ batch_size = 8 }}
prune Conv2d to 50%
mix {{
  path sparse = masked
  path slow   = ema(sparse, decay=0.5)
  path big    = network()
  update kept, pruned by sparse
  loss {own}(sparse)
  loss kl(student=sparse, teacher=big, temperature=2)
  loss mse(sparse, teacher=slow)
  deploy sparse
}}
train {{ epochs = 1ep  optimizer = sgd(lr=0.01) }}
"""


class Pixels(nn.Module):
    """Logits for each pixel, in a dictionary as torchvision's models return them."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.last = nn.Conv2d(width, 11, 1)

    def forward(self, x):
        return {"out": self.last(self.first(x).relu())}


def test_teachers_teach_a_segmentation_pixel_by_pixel(tmp_path):
    run = dcil.train(
        dcil.loads(SCENES.format(data="digits_masks", own="cross_entropy")),
        Pixels(4),
        "digits-masks",
        teachers={"big": Pixels(12)},
        out=tmp_path / "run",
        max_steps=3,
        device="cpu",
        workers=0,
        warn=lambda _: None,
    )
    (line,) = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    assert line["losses"]["kl(sparse<-big)"] > 0 and line["losses"]["mse(sparse<-slow)"] > 0


def test_a_teacher_of_a_detection_is_refused_with_the_name_of_the_loss(tmp_path):
    recipe = dcil.loads(SCENES.format(data="digits_boxes", own="model"))
    big = build_model("dcil:small_fcos", 11)
    with pytest.raises(InputError, match="`kl.sparse<-big.` compares outputs, and in training"):
        dcil.train(
            recipe,
            "dcil:small_fcos",
            "digits-boxes",
            teachers={"big": big},
            out=tmp_path / "run",
            device="cpu",
            workers=0,
            warn=lambda _: None,
        )


def test_the_command_line_gives_a_network_of_own_code(tmp_path, capsys):
    recipe = write_job(tmp_path, big="path big = network()", slow="", losses=KL)
    (tmp_path / "net.py").write_text(OWN)
    job = ["compile", recipe, "--model", f"{tmp_path}/net.py:Net", "--train", "digits"]
    job += ["--device", "cpu", "--quiet", "--max-steps", "2", "--out", tmp_path / "run"]
    assert call(*job, "--teacher", "big") == 2
    assert "--teacher big: not NAME=SPEC" in capsys.readouterr().err
    assert call(*job, "--teacher", f"big={tmp_path}/net.py:missing") == 2
    assert "has nothing called `missing`" in capsys.readouterr().err
    assert call(*job) == 1
    assert "the network of `big` is not given" in capsys.readouterr().err
    assert call(*job, "--teacher", f"big={tmp_path}/net.py:teacher") == 0


def test_a_plan_without_its_own_network_is_shown_and_says_what_it_does_not_count(tmp_path, capsys):
    recipe = write_job(tmp_path, big="path big = network()", slow="", losses=KL)
    assert call("plan", recipe, "--model", f"{tmp_path}/net.py:Net") == 0
    assert "is not counted, and taken as that of the model" in " ".join(
        capsys.readouterr().out.split()
    )
    assert call("check", recipe, "--model", f"{tmp_path}/net.py:Net") == 0


def test_check_with_a_model_finds_the_teacher_that_does_not_fit(tmp_path, capsys):
    recipe = write_job(tmp_path)
    write_big(tmp_path, classes=12)
    assert call("check", recipe) == 0
    assert call("check", recipe, "--model", f"{tmp_path}/net.py:Net") == 1
    assert "E331" in capsys.readouterr().err
