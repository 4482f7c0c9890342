"""The losses against formulas written out in float64."""

from __future__ import annotations

import pytest
import torch
from tiny_run import cross_entropy, kl, tiny_plan

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan import plan as p
from dcil_dsl.training.losses import logits_of, loss_terms, total_loss

LOGITS = {
    "sparse": torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], dtype=torch.float64),
    "dense": torch.tensor([[0.0, 1.5, -0.5], [2.0, 2.5, 1.0]], dtype=torch.float64),
}
TARGET = torch.tensor([0, 2])


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def plan_with(*losses: p.Loss) -> p.Plan:
    return tiny_plan(losses=losses)


def test_cross_entropy_is_the_mean_of_minus_log_probability():
    plan = plan_with(cross_entropy("sparse"))
    q = softmax(LOGITS["sparse"])
    expected = -(q[0, 0].log() + q[1, 2].log()) / 2
    torch.testing.assert_close(total_loss(plan, LOGITS, TARGET, 0), expected)


def test_smoothing_spreads_its_share_over_all_classes():
    plan = plan_with(cross_entropy("sparse", smoothing=0.3))
    log_q = softmax(LOGITS["sparse"]).log()
    wanted = torch.full((2, 3), 0.1, dtype=torch.float64)
    wanted[0, 0] += 0.7
    wanted[1, 2] += 0.7
    expected = -(wanted * log_q).sum() / 2
    torch.testing.assert_close(total_loss(plan, LOGITS, TARGET, 0), expected)


def test_kl_is_t_squared_times_the_divergence_from_teacher_to_student():
    plan = plan_with(kl("sparse", "dense", coefficient=0.5))
    student, teacher = softmax(LOGITS["sparse"] / 2), softmax(LOGITS["dense"] / 2)
    expected = 0.5 * 4 * (teacher * (teacher.log() - student.log())).sum(1).mean()
    torch.testing.assert_close(total_loss(plan, LOGITS, TARGET, 0), expected)


def test_only_the_student_learns_from_kl():
    outputs = {path: logits.clone().requires_grad_() for path, logits in LOGITS.items()}
    total_loss(plan_with(kl("sparse", "dense")), outputs, TARGET, 0).backward()
    student, teacher = softmax(LOGITS["sparse"] / 2), softmax(LOGITS["dense"] / 2)
    # d/dz of T^2 * KL / B is T * (student - teacher) / B
    torch.testing.assert_close(outputs["sparse"].grad, 2 * (student - teacher) / 2)
    assert outputs["dense"].grad is None


def test_a_term_counts_while_its_window_is_open():
    late = kl("sparse", "dense", p.Window(start=3, stop=5))
    plan = plan_with(cross_entropy("sparse"), late)
    open_at = [len(loss_terms(plan, LOGITS, TARGET, step)) for step in range(7)]
    assert open_at == [1, 1, 1, 2, 2, 1, 1]


def test_terms_come_without_their_coefficients():
    plan = plan_with(kl("sparse", "dense", coefficient=0.25))
    term = loss_terms(plan, LOGITS, TARGET, 0)["kl(sparse<-dense)"]
    torch.testing.assert_close(total_loss(plan, LOGITS, TARGET, 0), 0.25 * term)


def test_half_precision_logits_are_widened():
    plan = plan_with(cross_entropy("sparse"), kl("sparse", "dense"))
    outputs = {path: logits.bfloat16() for path, logits in LOGITS.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total_loss(plan, outputs, TARGET, 0)
    exact = total_loss(plan, {k: v.double() for k, v in outputs.items()}, TARGET, 0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_an_output_without_logits_is_a_plain_error():
    with pytest.raises(InputError, match="returns a list"):
        logits_of([LOGITS["sparse"]])
