"""The options of a run: one field each, checked where they are made, read by everything else."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError
from dcil_dsl.training.machine import Options
from dcil_dsl.training.options import RunOptions, defaults, flags, options_of


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(on_nan="ignore"), "--on-nan ignore: must be stop or rewind"),
        (dict(precision="fp8"), "--precision fp8: must be fp32, bf16 or fp16"),
        (dict(compile_mode="fast"), "--compile-mode fast: must be default or reduce-overhead"),
        (dict(evaluate_every=0), "--evaluate-every 0: must be at least 1"),
        (dict(workers=-1), "--workers -1: must be at least 0"),
        (dict(seed="3"), "--seed 3: must be a valid integer"),
        (dict(seed=True), "--seed True: must be a valid integer"),
        (dict(out=5), "--out 5: must be an instance of Path or a valid string"),
        (dict(overrides={"a": 1}), "--set .*: must be a valid string"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_under_the_name_of_its_flag(fields, message):
    with pytest.raises(InputError, match=message):
        RunOptions(**fields)


def test_options_that_exclude_or_need_each_other_are_refused():
    with pytest.raises(InputError, match="--checkpoint-activations does not go with --compile"):
        RunOptions(compile=True, checkpoint_activations=True)
    with pytest.raises(InputError, match="--compile-mode reduce-overhead needs --compile"):
        RunOptions(compile_mode="reduce-overhead")
    assert RunOptions(compile=True, compile_mode="reduce-overhead").compile


def test_every_default_is_a_value_that_a_run_can_have():
    assert vars(RunOptions()) == defaults()
    assert RunOptions().given() == ()


def test_every_field_has_a_flag_of_its_own_with_help():
    assert [field.name for field in dataclasses.fields(RunOptions)] == list(flags())
    names = [name for flag in flags().values() for name in (flag.name, flag.off) if name]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch("--[a-z][a-z-]+", name)] == []
    assert [name for name, flag in flags().items() if not flag.help] == []


def test_every_option_that_a_flag_names_is_a_field():
    named = {name for flag in flags().values() for name in (*flag.requires, *flag.excludes)}
    assert named <= set(flags())


def test_a_keyword_replaces_a_field_and_an_unknown_one_names_the_nearest():
    options = options_of(RunOptions(seed=1, quiet=False), dict(seed=2))
    assert (options.seed, options.quiet) == (2, False)
    with pytest.raises(TypeError, match="no option `presicion`: did you mean `precision`"):
        options_of(None, dict(presicion="bf16"))
    with pytest.raises(TypeError, match="no option `max_step`"):
        dcil.train("a.prune", "net.py:net", "digits", max_step=1)


def test_a_device_of_torch_is_its_name():
    assert RunOptions(device=torch.device("cuda", 1)).device == "cuda:1"


def test_the_options_of_a_process_are_those_of_the_run_and_what_it_found_out():
    here = Options(**vars(RunOptions(seed=3, device="cpu")), channels_last=True)
    assert (here.seed, here.channels_last, here.ranks.count) == (3, True, 1)


def test_what_belongs_to_one_machine_is_not_compared_between_processes():
    one = RunOptions(directory="/a", workers=1, out="run", weights="/a/w.pth", device="cuda:0")
    other = RunOptions(
        directory="/b", workers=2, out=Path.cwd() / "run", weights="/b/w.pth", device="cuda:1"
    )
    assert one.compared() == other.compared()
    assert one.compared() != RunOptions(max_steps=1).compared()
