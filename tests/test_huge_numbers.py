"""Numbers that float32 does not hold are refused where they stand, before the first step."""

from __future__ import annotations

import pytest
from support.tiny_job import NET, RECIPE, call, job

from dcil_dsl.diagnostics import InputError, RecipeError
from dcil_dsl.lang import loads
from dcil_dsl.plan import plan as p
from dcil_dsl.training.optim import check_rate
from dcil_dsl.training.options import RunOptions
from dcil_dsl.words.optimizers import SGD
from dcil_dsl.words.rates import Multistep
from dcil_dsl.words.units import Time

SETTINGS = [
    "optimizer = sgd(lr=1e39)",
    "optimizer = sgd(lr=1e308)",
    "optimizer = sgd(lr=0.1, weight_decay=1e300)",
    "optimizer = adamw(lr=1e308)",
    "optimizer = adamw(lr=0.1, weight_decay=1e300)",
    "optimizer = adamw(lr=0.1, eps=1e300)",
    "lr = cosine(final=1e300)",
    "lr = constant(warmup=1ep, warmup_from=1e300)",
    "lr = multistep(at=[1ep], gamma=1e300)",
    "integrator = extrapolate(rate=1e300)",
    "clip = 1e300",
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_float32_does_not_hold_is_refused_with_its_place(setting):
    name = setting.partition(" = ")[0]
    lines = [line for line in RECIPE.splitlines() if not line.strip().startswith(f"{name} ")]
    at = lines.index("train {") + 1
    with pytest.raises(RecipeError) as error:
        loads("\n".join([*lines[:at], f"  {setting}", *lines[at:]]))
    (diagnostic,) = error.value.diagnostics
    assert "it must be at most 3e38" in diagnostic.message
    assert diagnostic.span.text.partition("=")[0].strip() in setting


def test_a_penalty_that_float32_does_not_hold_is_refused_with_its_place():
    with pytest.raises(RecipeError):
        loads(RECIPE.replace("  refresh ", "  penalty = square(pruned, 1e300)\n  refresh "))


def test_a_rate_that_grows_beyond_float32_is_refused_before_the_first_step(tmp_path, capsys):
    rate = "multistep(at=[1 steps, 2 steps, 3 steps], gamma=1e30)"
    (tmp_path / "tiny.prune").write_text(RECIPE.replace("cosine()", rate))
    (tmp_path / "net.py").write_text(NET)
    assert call(*job(tmp_path), "--out", tmp_path / "run") == 2
    assert "the learning rate is beyond what float32 holds at step 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_rate_beyond_python_s_own_numbers_is_refused_alike():
    rate = Multistep(at=tuple(Time(step, "steps") for step in range(20)), gamma=1e38)
    train = p.TrainPlan(num_epochs=1, optimizer=SGD(lr=1.0), rate=rate)
    with pytest.raises(InputError, match="beyond what float32 holds"):
        check_rate(p.Plan.model_construct(train=train, num_steps=30))


TOO_LARGE = 2**53


@pytest.mark.parametrize("seed", [TOO_LARGE, 2**64, 10**23])
def test_a_seed_beyond_the_largest_is_refused_with_the_range_on_the_command_line(
    seed, tmp_path, capsys
):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    assert call(*job(tmp_path), "--seed", seed, "--out", tmp_path / "run") == 2
    assert f"less than or equal to {TOO_LARGE - 1}" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"^--seed {seed}: must be at most {TOO_LARGE - 1}$"):
        RunOptions(seed=seed)


@pytest.mark.parametrize("seed", [TOO_LARGE, 10**23])
def test_a_seed_beyond_the_largest_is_refused_with_the_range_in_a_recipe(seed):
    with pytest.raises(RecipeError) as error:
        loads(RECIPE.replace("train {", f"train {{\n  seed = {seed}"))
    (found,) = error.value.diagnostics
    wanted = f"`seed` of `train` is a whole number from 0 to {TOO_LARGE - 1}, not {seed}"
    assert (found.code, found.message) == ("E205", wanted)


def test_the_largest_seed_is_taken_in_both_places():
    assert RunOptions(seed=TOO_LARGE - 1).seed == TOO_LARGE - 1
    recipe = loads(RECIPE.replace("train {", f"train {{\n  seed = {TOO_LARGE - 1}"))
    assert recipe.train.seed == TOO_LARGE - 1
