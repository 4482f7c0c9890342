"""A recipe in a loop of one's own: against the same loop written out, and resumed."""

import copy

import pytest
import torch
from support.two_paths import two_paths
from torch import nn

import dcil_dsl as dcil

RECIPE = two_paths(
    """prune Linear to 80% {
  schedule = cubic(0ep..3ep)
  {more}
}
pruning { refresh = 2 steps }""",
    mix="private BatchNorm1d\n  loss kl(student=sparse, teacher=dense)",
    train="""epochs = 4ep
  optimizer = sgd(lr=0.1, momentum=0.9, weight_decay=0.001)
  lr = cosine(warmup=1ep)
  {train}""",
)
STEPS = 5


def text(train="", more=""):
    return RECIPE.replace("{train}", train).replace("{more}", more)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5)).double()


def batches(num=STEPS, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 6, dtype=torch.float64, generator=generator),
            torch.randint(5, (size,), generator=generator),
        )
        for _ in range(num)
    ]


def pruner_of(recipe, steps=STEPS, **more):
    return dcil.Pruner(recipe, net(), steps_per_epoch=steps, **more)


def train(pruner, optimizer, epochs, loader=None):
    for _ in range(epochs):
        for x, y in loader or batches():
            loss = pruner.step_loss(x, target=y)
            optimizer.zero_grad()
            loss.backward()
            pruner.step(optimizer)


def state_of(pruner):
    return {**pruner.dual.state_dict(), **pruner.state_dict()["ema"]}


def equal(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_the_loop_of_five_lines_is_the_loop_written_out():
    """Masks, losses, clipping, penalty, rate, momentum and the mean of the weights."""
    recipe = text("clip = 0.5\n  ema = 0.9", "penalty = [square(pruned, weight=0.01)]")
    pruner = pruner_of(recipe)
    train(pruner, pruner.make_optimizer(), epochs=4)

    plan = dcil.resolve(recipe, net(), steps_per_epoch=STEPS)
    dual = dcil.compile(plan, net()).train()
    weights = [weight for _, weight in dual.trainable()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    mean = {n: t.clone() for n, t in dual.state_dict().items() if t.is_floating_point()}
    for step in range(4 * STEPS):
        x, y = batches()[step % STEPS]
        dual.begin_step(step)
        dual.zero_grad()
        dcil.loss(plan, dual(x), y, step).backward()
        norm = sum(weight.grad.square().sum() for weight in weights).sqrt()
        for weight in weights:
            weight.grad *= min(1.0, 0.5 / (float(norm) + 1e-6))
        dual.add_penalties(step)
        with torch.no_grad():
            for weight, v in zip(weights, velocity, strict=True):
                v.mul_(0.9).add_(weight.grad + 0.001 * weight)
                weight.sub_(plan.lr_at(step) * v)
            for name, tensor in dual.state_dict().items():
                if name in mean:
                    mean[name].mul_(0.9).add_(tensor, alpha=0.1)
    for name, tensor in dual.state_dict().items():
        torch.testing.assert_close(pruner.dual.state_dict()[name], tensor, rtol=0, atol=1e-12)
    sparse = pruner.export()
    for name, tensor in sparse.named_parameters():
        expected = mean[name]
        if f"{name}_mask" in dict(dual.named_buffers()):
            expected = expected * dual.get_buffer(f"{name}_mask")
        torch.testing.assert_close(tensor.detach(), expected, rtol=0, atol=1e-12)
    assert [float((sparse[i].weight == 0).double().mean()) for i in (0, 3)] == [0.8, 0.8]


@pytest.mark.parametrize("clears", ["each batch", "each step"])
def test_batches_of_one_step_together_are_one_large_batch(clears):
    """However the loop clears gradients. The batch norm sees each batch alone: left out."""
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5)).double()
    recipe = text("clip = 0.5").replace("private BatchNorm1d", "")
    once = dcil.Pruner(recipe, model, steps_per_epoch=STEPS)
    parts = dcil.Pruner(recipe, model, steps_per_epoch=STEPS, overrides={"train.accumulate": "4"})
    optimizer, other = once.make_optimizer(), parts.make_optimizer()
    for x, y in batches() * 4:
        train(once, optimizer, 1, [(x, y)])
        taken = []
        for i in range(0, 8, 2):
            loss = parts.step_loss(x[i : i + 2], target=y[i : i + 2])
            if clears == "each batch":
                other.zero_grad()
            loss.backward()
            taken.append(parts.step(other))
            if clears == "each step" and taken[-1]:
                other.zero_grad()
        assert taken == [False, False, False, True]
    for name, tensor in once.dual.state_dict().items():
        torch.testing.assert_close(parts.dual.state_dict()[name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("train_block", ["", "ema = 0.9", "accumulate = 2"])
def test_a_resumed_loop_ends_with_the_same_bits(train_block, tmp_path):
    recipe = text(train_block, "score = taylor(average=0.9)")
    epochs = 8 if "accumulate" in train_block else 4
    through = pruner_of(recipe)
    train(through, through.make_optimizer(), epochs)

    first = pruner_of(recipe)
    optimizer = first.make_optimizer()
    train(first, optimizer, epochs // 2)
    torch.save((first.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = pruner_of(recipe)
    optimizer = second.make_optimizer()
    second.load_state_dict(state)
    optimizer.load_state_dict(optimizer_state)
    train(second, optimizer, epochs // 2)
    equal(state_of(through), state_of(second))


def test_the_state_of_another_recipe_is_refused():
    state = pruner_of(text()).state_dict()
    with pytest.raises(dcil.InputError, match="another plan"):
        pruner_of(text("ema = 0.9")).load_state_dict(state)


def test_an_early_network_is_exported_only_on_request():
    pruner = pruner_of(text())
    train(pruner, pruner.make_optimizer(), epochs=1)
    with pytest.raises(dcil.SparsityError, match="unfinished=True"):
        pruner.export()
    assert 0 < pruner.sparsity < 0.8
    assert float((pruner.export(unfinished=True)[0].weight == 0).double().mean()) < 0.8


def test_the_scheduler_gives_the_rate_of_each_step():
    pruner = pruner_of(text())
    optimizer = pruner.make_optimizer()
    assert optimizer.param_groups[0]["lr"] == pruner.plan.lr_at(0)
    scheduler = pruner.make_scheduler(optimizer)
    for step in range(pruner.plan.num_steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(pruner.plan.lr_at(step), abs=1e-15)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("integrator = heun", "integrator"),
        ("balance = inverse_dirichlet", "balance"),
        ("precision = fp16", "precision = fp16"),
        ("sync_norms = true", "sync_norms"),
    ],
)
def test_what_a_plain_loop_cannot_do_is_refused_by_name(setting, name):
    with pytest.raises((dcil.InputError, dcil.RecipeError), match=name):
        pruner_of(text(setting))


def test_a_step_without_a_loss_is_an_error():
    pruner = pruner_of(text())
    with pytest.raises(RuntimeError, match="no step was begun"):
        pruner.step(pruner.make_optimizer())


def test_a_recipe_is_a_recipe_a_path_or_a_text(tmp_path):
    path = tmp_path / "net.prune"
    path.write_text(text())
    plans = [
        dcil.resolve(recipe, net(), steps_per_epoch=STEPS).groups
        for recipe in (dcil.loads(text()), path, str(path), text())
    ]
    for plan in plans:
        assert [group.num_weights for group in plan] == [group.num_weights for group in plans[0]]
    assert pruner_of(path).plan.num_steps == 4 * STEPS
    with pytest.raises(dcil.InputError, match="cannot read the recipe nothing.prune"):
        pruner_of("nothing.prune")
    with pytest.raises(dcil.InputError, match="this is int"):
        pruner_of(3)


def test_a_recipe_error_shows_the_line_and_a_caret_in_python():
    with pytest.raises(dcil.RecipeError) as caught:
        pruner_of(text("momentun = 3"))
    lines = str(caught.value).splitlines()
    assert "momentun" in lines[0] and any(set(line.strip(" |")) == {"^"} for line in lines)


def test_the_average_of_the_weights_is_measured_and_training_resumes_without_it():
    pruner = pruner_of(text("ema = 0.9"))
    optimizer = pruner.make_optimizer()
    train(pruner, optimizer, 1)
    before = copy.deepcopy(pruner.dual.state_dict())
    seen = pruner.evaluate(lambda model: model[0].bias.clone())
    equal(before, pruner.dual.state_dict())
    assert torch.equal(seen, pruner.state_dict()["ema"]["0.bias"])
    assert not torch.equal(seen, before["0.bias"])


@pytest.mark.parametrize(
    "more", ["score = taylor(average=0.9)", "penalty = [norm(pruned, weight=0.01)]"]
)
def test_a_scaled_loss_changes_no_score_no_penalty_and_no_clipping(more):
    found = []
    for scale in (1.0, 2.0**12):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
        pruner = pruner_of(text("clip = 0.5", more), scaler=scaler)
        optimizer = pruner.make_optimizer()
        for x, y in batches() * 4:
            loss = pruner.step_loss(x, target=y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            pruner.step(optimizer)
        assert scaler.get_scale() > scale
        found.append(pruner.export())
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_fp16_trains_on_and_a_step_that_overflows_is_left_out():
    """torch's own fp16 of the CPU; the first scale is too large for it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    recipe = text("precision = fp16", "score = taylor(average=0.9)")
    pruner = dcil.Pruner(recipe, net().float(), steps_per_epoch=20, scaler=scaler)
    optimizer = pruner.make_optimizer()
    first = pruner.dual.state_dict()["0.weight"].clone()
    for step, (x, y) in enumerate(batches() * 16):
        optimizer.zero_grad()
        scaler.scale(pruner.step_loss(x.float(), target=y)).backward()
        pruner.step(optimizer)
        if step == 0:
            assert torch.equal(pruner.dual.state_dict()["0.weight"], first)
    assert scaler.get_scale() < 2.0**40 and pruner.steps == 80
    assert all(tensor.isfinite().all() for tensor in pruner.dual.state_dict().values())
    sparse = pruner.export()
    assert [float((sparse[i].weight == 0).float().mean()) for i in (0, 3)] == pytest.approx(
        [0.8] * 2
    )
    assert not torch.equal(sparse[0].weight != 0, first != 0)


# -- habits that the recipe's step would otherwise pass over in silence --------------------------


def test_a_rate_of_the_loop_that_the_recipes_replaces_is_named_once():
    pruner = pruner_of(text())
    optimizer = torch.optim.SGD(pruner.dual.parameters(), lr=0.7)
    with pytest.warns(UserWarning, match=r"replaces the optimizer's \(0\.7\)") as said:
        train(pruner, optimizer, 1)
    assert len([w for w in said if "replaces" in str(w.message)]) == 1


def test_a_scheduler_of_the_loop_that_the_recipes_rate_replaces_is_named():
    pruner = pruner_of(text())
    optimizer = pruner.make_optimizer()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with pytest.warns(UserWarning, match="replaces the optimizer's"):
        for x, y in batches():
            pruner.step_loss(x, target=y).backward()
            pruner.step(optimizer)
            scheduler.step()


@pytest.mark.parametrize("of_the_pruner", [True, False])
def test_the_recipes_own_rate_is_not_warned_about(of_the_pruner, recwarn):
    pruner = pruner_of(text())
    optimizer = pruner.make_optimizer()
    scheduler = pruner.make_scheduler(optimizer) if of_the_pruner else None
    for x, y in batches():
        pruner.step_loss(x, target=y).backward()
        pruner.step(optimizer)
        if scheduler is not None:
            scheduler.step()
    assert [str(w.message) for w in recwarn if "replaces" in str(w.message)] == []


def test_an_optimizer_that_needs_a_closure_is_refused_by_name():
    pruner = pruner_of(text())
    x, y = batches()[0]
    pruner.step_loss(x, target=y).backward()
    with pytest.raises(dcil.InputError, match="LBFGS evaluates the loss several times"):
        pruner.step(torch.optim.LBFGS(pruner.dual.parameters()))


def test_data_parallel_of_several_devices_around_the_dual_is_refused():
    pruner = pruner_of(text())
    x, y = batches()[0]
    pruner.step_loss(x, target=y).backward()
    pruner.module = torch.nn.DataParallel(pruner.dual)
    pruner.module.device_ids = [0, 1]  # as where two GPUs are
    with pytest.raises(dcil.InputError, match="DataParallel"):
        pruner.step(pruner.make_optimizer())


def test_a_pruned_lstm_is_exported_in_the_middle_of_a_loop_and_at_its_end():
    """It holds the weights of its last forward, which the optimizer has changed since."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.read = nn.BatchNorm1d(6), nn.LSTM(2, 8, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.read(self.norm(x).reshape(-1, 3, 2))[0][:, -1])

    recipe = text().replace("prune Linear", "prune Linear, LSTM")
    example = (batches()[0][0],)
    pruner = dcil.Pruner(recipe, Reader().double(), steps_per_epoch=STEPS, example_inputs=example)
    optimizer = pruner.make_optimizer()
    for _ in range(4):
        train(pruner, optimizer, 1)
        pruner.export(unfinished=True)
    found, plain = pruner.export().eval(), Reader().double().eval()
    plain.load_state_dict(found.state_dict())
    assert torch.equal(found(*example), plain(*example))
    mask = pruner.dual.masks["read.weight_ih_l0"]
    assert torch.equal(found.read.weight_ih_l0 != 0, mask) and (~mask).sum() >= 0.8 * mask.numel()


def test_a_frozen_dual_that_another_network_learns_through_keeps_its_scores():
    pruner = pruner_of(text(more="score = taylor(average=0.9)"))
    optimizer = pruner.make_optimizer()
    train(pruner, optimizer, 1)
    before = {name: score.clone() for name, score in pruner.dual.score_state.items()}
    pruner.dual.requires_grad_(False)
    x = batches()[0][0].requires_grad_()  # as a generator makes it
    pruner.dual(x)["sparse"].square().sum().backward()
    assert x.grad.abs().sum() > 0
    equal(before, dict(pruner.dual.score_state))
    pruner.dual.requires_grad_(True)
    train(pruner, optimizer, 3)
    pruner.export()
