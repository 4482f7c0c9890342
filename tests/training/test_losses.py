"""The losses against formulas written out in float64."""

from __future__ import annotations

import pytest
import torch
from support.tiny_run import cross_entropy, kl, own, tiny_plan

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan import plan as p
from dcil_dsl.training.losses import loss_terms, refuse_constant, total_loss
from dcil_dsl.words import losses
from dcil_dsl.words.tensors.outputs import counted_positions, logits_of

LOGITS = {
    "sparse": torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], dtype=torch.float64),
    "dense": torch.tensor([[0.0, 1.5, -0.5], [2.0, 2.5, 1.0]], dtype=torch.float64),
}
TARGET = torch.tensor([0, 2])


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def plan_with(*losses: p.WeightedLoss) -> p.Plan:
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


# -- outputs of more than one row a sample ---------------------------------------------------------


def test_a_language_model_has_its_classes_last_and_positions_with_a_target_count_alike():
    generator = torch.Generator().manual_seed(0)
    sparse, dense = torch.randn(2, 2, 5, 3, dtype=torch.float64, generator=generator)
    target = torch.tensor([[0, 1, 2, 1, 0], [2, 2, -100, 0, 1]])
    plan = plan_with(cross_entropy("sparse"), kl("sparse", "dense"))
    terms = loss_terms(plan, {"sparse": sparse, "dense": dense}, target, 0)
    log_q = sparse.log_softmax(-1)
    told = [log_q[b, t, target[b, t]] for b in range(2) for t in range(5) if target[b, t] >= 0]
    torch.testing.assert_close(terms["cross_entropy(sparse)"], -sum(told) / 9)
    p_, q = (dense / 2).softmax(-1), (sparse / 2).softmax(-1)
    divergence = 4 * (p_ * (p_ / q).log()).sum(-1)
    torch.testing.assert_close(terms["kl(sparse<-dense)"], divergence[target >= 0].sum() / 9)


@pytest.mark.parametrize(
    ("term", "of_position"),
    [
        (losses.KL(student="sparse", teacher="dense"), lambda p, q: (q * (q / p).log()).sum()),
        (
            losses.JS(one="sparse", other="dense"),
            lambda p, q: sum((x * (2 * x / (p + q)).log()).sum() for x in (p, q)) / 2,
        ),
        (losses.MSE(path="sparse", teacher="dense"), None),
        (losses.CosineDistance(path="sparse", teacher="dense"), None),
    ],
    ids=lambda value: value.word if isinstance(value, losses.Loss) else None,
)
@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5, 4)], ids=["text", "image"])
def test_two_paths_are_compared_where_there_is_a_target(term, of_position, shape):
    """Filled places of a batch of texts, and pixels of no class, teach nothing."""
    generator = torch.Generator().manual_seed(0)
    sparse, dense = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    sparse.requires_grad_()
    target = torch.zeros(shape[0], *(shape[1:2] if len(shape) == 3 else shape[2:]), dtype=int)
    target.view(2, -1)[1, -3:] = -100
    found = term.term({"sparse": sparse, "dense": dense}, target)
    total, num = 0.0, 0
    for place in torch.argwhere(target >= 0).tolist():
        at = tuple(place) if len(shape) == 3 else (place[0], slice(None), *place[1:])
        z, y = sparse[at], dense[at]
        if of_position is not None:
            total += of_position(z.exp() / z.exp().sum(), y.exp() / y.exp().sum())
        elif isinstance(term, losses.MSE):
            total += ((z - y) ** 2).sum() / len(z)
        else:
            total += 1 - (z @ y) / (z.norm() * y.norm())
        num += 1
    torch.testing.assert_close(found, total / num)
    (gradient,) = torch.autograd.grad(found, sparse)
    by_position = gradient.abs().sum(2 if len(shape) == 3 else 1)
    assert torch.equal(by_position > 0, target >= 0)


def test_a_mask_says_which_positions_count_where_no_target_does():
    generator = torch.Generator().manual_seed(0)
    sparse, dense = torch.randn(2, 2, 3, 4, generator=generator)
    plan = plan_with(kl("sparse", "dense"))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    target = torch.where(mask == 1, 0, -100)

    def term(outputs, target=None, mask=None):
        counted = counted_positions({"attention_mask": mask})
        (value,) = loss_terms(plan, outputs, target, 0, counted).values()
        return value

    plain = {"sparse": {"logits": sparse}, "dense": {"logits": dense}}
    decoder = {p: {**out, "encoder_last_hidden_state": sparse} for p, out in plain.items()}
    assert term(plain, mask=mask) == term(plain, mask=mask.bool()) == term(plain, target)
    assert term(plain, mask=mask) != term(plain)
    # of an encoder, and of real numbers, where 0 may let a position in: they say nothing here
    assert term(decoder, mask=mask) == term(plain, mask=-1e9 * (1.0 - mask)) == term(plain)
    assert term(decoder, target, mask) == term(plain, target)


def masked_mean(values, mask):
    return values[mask == 1].mean()


def test_a_target_of_other_places_leaves_the_mask_to_say_which_positions_count():
    """Labels of two spans, or of a transcript, next to outputs for each token."""
    sparse, dense = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    counted = counted_positions({"attention_mask": mask})
    term = losses.MSE(path="sparse", teacher="dense")
    found = term.term({"sparse": sparse, "dense": dense}, torch.zeros(2, 2, dtype=int), 1, counted)
    torch.testing.assert_close(found, masked_mean((sparse - dense).square().mean(2), mask))


@pytest.mark.parametrize("by_target", [True, False])
def test_one_number_for_each_position_counts_where_the_position_does(by_target):
    sparse, dense = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    counted = counted_positions({"attention_mask": mask})
    target, counted = (counted, None) if by_target else (None, counted)
    term = losses.MSE(path="sparse", teacher="dense")
    found = term.term({"sparse": sparse, "dense": dense}, target, 1, counted)
    torch.testing.assert_close(found, masked_mean((sparse - dense).square(), mask))


def test_a_label_of_minus_100_counts_for_nothing_in_binary_cross_entropy():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]], requires_grad=True)
    target = torch.tensor([[1, -100], [0, 1]])
    found = losses.BinaryCrossEntropy(path="sparse").term({"sparse": logits}, target)
    told = [logits[0, 0].sigmoid(), 1 - logits[1, 0].sigmoid(), logits[1, 1].sigmoid()]
    torch.testing.assert_close(found, -sum(p.log() for p in told) / 3)


def test_what_an_encoder_returns_counts_by_its_mask_and_not_by_the_decoders_targets():
    sparse, dense = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    outputs = {
        path: {"logits": own.flip(1), "encoder_last_hidden_state": own}
        for path, own in (("sparse", sparse), ("dense", dense))
    }
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    counted = counted_positions({"attention_mask": mask})
    target = torch.tensor([[1, -100, -100], [1, 2, 3]])
    term = losses.MSE(path="sparse", teacher="dense", output="encoder_last_hidden_state")
    found = term.term(outputs, target, 1, counted)
    torch.testing.assert_close(found, masked_mean((sparse - dense).square().mean(2), mask))


def test_a_mask_next_to_arguments_of_a_decoder_is_the_encoders():
    mask = torch.tensor([[1, 1, 0]])
    assert counted_positions({"attention_mask": mask, "decoder_input_ids": mask}) is None
    assert counted_positions({"attention_mask": mask, "decoder_input_ids": None}) is not None


@pytest.mark.parametrize("target", [[{"boxes": torch.ones(1, 4)}], {"class": torch.zeros(2)}])
def test_targets_that_are_no_tensor_are_plain_errors_or_say_nothing_of_positions(target):
    outputs = {path: torch.randn(2, 4, 3) for path in ("sparse", "dense")}
    plain = loss_terms(plan_with(kl("sparse", "dense")), outputs, None, 0)
    assert loss_terms(plan_with(kl("sparse", "dense")), outputs, target, 0) == plain
    with pytest.raises(InputError, match="the target is of type .*, and must be a tensor"):
        total_loss(plan_with(cross_entropy("sparse")), outputs, target, 0)


def test_nothing_is_compared_where_no_position_has_a_target():
    term = losses.KL(student="sparse", teacher="dense")
    outputs = {path: torch.randn(2, 4, 3) for path in ("sparse", "dense")}
    assert float(term.term(outputs, torch.full((2, 4), -100))) == 0


def test_a_segmentation_has_its_classes_second_and_its_terms_name_their_outputs():
    generator = torch.Generator().manual_seed(0)
    out, aux, dense = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 4, (2, 3, 5), generator=generator)
    plan = plan_with(
        cross_entropy("sparse", output="out"),
        cross_entropy("sparse", coefficient=0.4, output="aux"),
        kl("sparse", "dense", output="out"),
    )
    outputs = {"sparse": {"out": out, "aux": aux}, "dense": {"out": dense}}

    def by_hand(logits):
        rows = logits.permute(0, 2, 3, 1).reshape(-1, 4).log_softmax(1)
        return -rows[torch.arange(30), target.flatten()].mean()

    p_, q = (dense / 2).softmax(1), (out / 2).softmax(1)
    divergence = 4 * (p_ * (p_ / q).log()).sum() / 30
    expected = by_hand(out) + 0.4 * by_hand(aux) + divergence
    torch.testing.assert_close(total_loss(plan, outputs, target, 0), expected)


def test_a_term_may_name_a_place_in_a_tuple():
    plan = plan_with(cross_entropy("sparse", output="1"))
    outputs = {"sparse": (LOGITS["dense"], LOGITS["sparse"])}
    expected = total_loss(plan_with(cross_entropy("sparse")), LOGITS, TARGET, 0)
    assert total_loss(plan, outputs, TARGET, 0) == expected


@pytest.mark.parametrize(
    "output, name, message",
    [
        ({"out": torch.ones(2, 3), "aux": torch.ones(2, 3)}, "ouut", "did you mean `out`?"),
        ({"out": torch.ones(2, 3)}, "logits", "returns a dict, in which there is no tensor"),
        ((torch.ones(2, 3),), "1", "it has 0"),
        ({"loss": torch.tensor(1.0)}, "loss", "is a single number, no logits"),
    ],
)
def test_an_output_that_is_missing_is_reported_with_the_term(output, name, message):
    with pytest.raises(InputError) as error:
        total_loss(plan_with(cross_entropy("sparse", output=name)), {"sparse": output}, TARGET, 0)
    assert message in str(error.value)
    assert f"`cross_entropy(sparse, {name})`: " in str(error.value)


def test_a_target_of_another_shape_is_a_plain_error():
    with pytest.raises(InputError, match="the target is 3, the logits ask for 2"):
        total_loss(plan_with(cross_entropy("sparse")), LOGITS, torch.tensor([0, 1, 2]), 0)
    with pytest.raises(InputError, match="it needs a target"):
        total_loss(plan_with(cross_entropy("sparse")), LOGITS, None, 0)


# -- the model's own loss --------------------------------------------------------------------------


class Output(dict):
    """As transformers returns it: a mapping whose entries are fields too."""

    def __init__(self, **fields):
        super().__init__(**fields)
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    "output",
    [
        torch.tensor(3.0),
        torch.tensor([3.0]),
        Output(loss=torch.tensor(3.0), logits=torch.ones(2, 3)),
        {"loss_box": torch.tensor(1.0), "loss_class": torch.tensor(2.0)},
    ],
    ids=["a number", "one number", "a field", "a dictionary of losses"],
)
def test_the_models_own_loss_is_read_off_its_output_and_needs_no_target(output):
    plan = plan_with(own("sparse", coefficient=0.5))
    assert total_loss(plan, {"sparse": output}, None, 0) == 1.5


@pytest.mark.parametrize(
    "output, message",
    [
        (torch.ones(2, 3), "a tensor of 2 x 3, not a loss of its own"),
        (Output(loss=None, logits=torch.ones(2, 3)), "give it its labels"),
        ([{"boxes": torch.ones(0, 4)}], "a detection model has losses in training mode alone"),
        ({"loss": torch.ones(2)}, "is a tensor of 2, not a number"),
    ],
)
def test_a_model_without_a_loss_of_its_own_is_reported(output, message):
    with pytest.raises(InputError) as error:
        total_loss(plan_with(own("sparse")), {"sparse": output}, None, 0)
    assert "`model(sparse)`: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "derive, said",
    [
        (lambda y: y.long(), "int64"),
        (lambda y: y > 0, "bool"),
        (lambda y: torch.complex(y, y), "complex64"),
        (lambda y: y.to_sparse(), "float32, in a sparse layout"),
    ],
    ids=["whole numbers", "truths", "complex", "sparse"],
)
def test_outputs_that_no_loss_can_be_taken_of_are_named(derive, said):
    plan = plan_with(cross_entropy("sparse"))
    outputs = {path: derive(torch.randn(2, 3)) for path in ("sparse", "dense")}
    with pytest.raises(InputError, match=f"the model returns {said}: a loss is of real numbers"):
        total_loss(plan, outputs, torch.tensor([0, 1]), 0)


def test_a_loss_of_detached_outputs_is_refused_before_its_backward_pass():
    refuse_constant(torch.ones((), requires_grad=True))
    with pytest.raises(InputError, match="depends on no weight that learns"):
        refuse_constant(torch.ones(()))


def test_a_mask_of_another_length_than_the_output_warns_that_padding_counts():
    outputs = {path: torch.randn(2, 3, 4) for path in ("sparse", "dense")}
    term = losses.KL(student="sparse", teacher="dense")
    counted = counted_positions({"attention_mask": torch.ones(2, 12, dtype=int)})
    with pytest.warns(RuntimeWarning, match="12 positions and the output 3"):
        term.term(outputs, None, 1, counted)


@pytest.mark.parametrize("shape", [(2, 12, 4), (2, 4)], ids=["equal length", "one output a text"])
def test_a_mask_that_fits_and_one_next_to_classes_say_nothing(shape, recwarn):
    outputs = {path: torch.randn(*shape) for path in ("sparse", "dense")}
    counted = counted_positions({"attention_mask": torch.ones(2, 12, dtype=int)})
    losses.KL(student="sparse", teacher="dense").term(outputs, None, 1, counted)
    assert not recwarn.list
