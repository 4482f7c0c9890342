"""The shape file leads back, and a file that was tampered with is refused in plain text."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.zeroed import enliven, zero_rows
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact import files as shapes
from dcil_dsl.extras.compact.compaction import compact
from dcil_dsl.extras.compact.files import SHAPES, WEIGHTS, gather, scatter, write_shapes
from dcil_dsl.extras.compact.load import expand, load_compact

IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return zero_rows(enliven(build()), part=0.5)


@pytest.fixture
def result(model):
    return compact(model, IMAGE)


@pytest.fixture
def folder(result, tmp_path):
    write_shapes(tmp_path / "small", result.shapes, result.tensors, {})
    return tmp_path / "small"


def edit(folder, change):
    """Change shapes.json as data; its digest of the tensors stays."""
    shapes = json.loads((folder / SHAPES).read_text())
    change(shapes)
    (folder / SHAPES).write_text(json.dumps(shapes))


def test_the_small_network_is_rebuilt_from_the_original_and_the_files(folder, result):
    loaded = load_compact(folder, build())
    assert torch.equal(loaded(*IMAGE), result.model(*IMAGE))
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in result.model.named_parameters()
    }


def test_the_files_lead_back_to_the_original_keys_and_shapes(folder, model):
    again = build().eval()
    again.load_state_dict(expand(folder), strict=True)
    torch.testing.assert_close(again(*IMAGE), model(*IMAGE), rtol=1e-5, atol=1e-5)


def test_a_head_that_left_is_found_again_by_its_name(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.out = nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.attention(x, x, x, need_weights=False)[0])

    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.attention.out_proj.weight[:, :4] = 0.0
    x = (torch.randn(2, 5, 8),)
    result = compact(model, x)
    write_shapes(tmp_path, result.shapes, result.tensors, {})
    assert torch.equal(load_compact(tmp_path, Net())(*x), result.model(*x))


def test_a_branch_that_left_is_left_out_again_and_its_weights_come_back_as_zeros(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.a(x)
            return x + self.norm(self.b(x))

    torch.manual_seed(0)
    model = enliven(Net())
    with torch.no_grad():
        model.b.weight.zero_()
    result = compact(model, IMAGE)
    write_shapes(tmp_path, result.shapes, result.tensors, {})
    assert result.tensors["b.weight"].shape == (0, 4, 1, 1)
    assert torch.equal(load_compact(tmp_path, Net())(*IMAGE), result.model(*IMAGE))
    again = Net().eval()
    again.load_state_dict(expand(tmp_path), strict=True)
    torch.testing.assert_close(again(*IMAGE), model(*IMAGE), rtol=1e-5, atol=1e-5)
    edit(tmp_path, lambda s: s.update(replaced=[]))
    with pytest.raises(InputError):
        load_compact(tmp_path, Net())


def test_an_index_map_says_for_each_dim_which_indices_stay():
    full = torch.arange(12.0).view(3, 4)
    small = gather(full, {0: [0, 2], 1: [1]})
    assert small.tolist() == [[1.0], [9.0]]
    assert scatter(small, {0: [0, 2], 1: [1]}, full.shape).tolist() == [
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 9, 0, 0],
    ]


def test_in_a_grouped_dim_each_group_has_its_own_indices():
    full = torch.arange(8.0).view(4, 2)  # two groups of two rows
    kept = {0: [0, 2, 3], 1: [[1], [0]]}
    small = gather(full, kept)
    assert small.tolist() == [[1.0], [4.0], [6.0]]
    assert scatter(small, kept, full.shape).tolist() == [[0, 1], [0, 0], [4, 0], [6, 0]]


def test_the_files_hold_tensors_and_json_only(folder, result):
    shapes = json.loads((folder / SHAPES).read_text())
    assert shapes["modules"]["0"] == {
        "type": "Conv2d",
        "before": {"in_channels": 3, "out_channels": 8, "groups": 1},
        "after": {"in_channels": 3, "out_channels": len(result.tensors["0.weight"]), "groups": 1},
    }
    assert shapes["tensors"]["0.weight"]["shape"] == [8, 3, 3, 3]
    assert load_file(folder / WEIGHTS).keys() == build().state_dict().keys()


def test_another_model_is_refused_by_the_first_tensor_that_differs(folder):
    other = build()
    other[6] = nn.Linear(8 * 36, 5)
    with pytest.raises(InputError, match=r"not the model .*: 6.bias is \[5\] here and \[4\] there"):
        load_compact(folder, other)
    with pytest.raises(InputError, match="it has no 6.bias"):
        load_compact(folder, build()[:-1])


def test_changed_weights_are_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["0.bias"][0] += 1
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError, match="does not hold the tensors that shapes.json was written"):
        load_compact(folder, build())


def test_indices_that_contradict_their_neighbours_are_refused(folder):
    def move(shapes):
        kept = shapes["tensors"]["0.weight"]["kept"]["0"]
        kept[0] = next(i for i in range(8) if i not in kept)
        kept.sort()

    edit(folder, move)
    with pytest.raises(InputError, match="does not fit those of its neighbours"):
        load_compact(folder, build())


def test_indices_that_do_not_exist_are_refused(folder):
    edit(folder, lambda s: s["tensors"]["0.weight"]["kept"].update({"0": [0, 99]}))
    with pytest.raises(InputError, match="0.weight"):
        load_compact(folder, build())


def test_a_tensor_of_another_size_than_its_map_is_refused(folder):
    edit(folder, lambda s: s["tensors"]["0.weight"]["kept"]["0"].pop())
    with pytest.raises(InputError, match="0.weight has the shape .*, and the shape file says"):
        load_compact(folder, build())


def test_a_dim_that_no_layer_can_lose_is_refused(folder):
    edit(folder, lambda s: s["tensors"]["0.weight"]["kept"].update({"3": [0, 1, 2]}))
    with pytest.raises(InputError, match="0.weight"):
        load_compact(folder, build())


@pytest.mark.parametrize(
    "field, fact", [("opened", "`2` is not an attention module"), ("replaced", "`2` has no bias")]
)
def test_modules_that_are_not_what_the_file_says_are_refused(folder, field, fact):
    edit(folder, lambda s: s.update({field: ["2"]}))
    with pytest.raises(InputError, match=fact):
        load_compact(folder, build())


@pytest.mark.parametrize(
    "text, fact",
    [("{", "is not a shape file: not JSON"), ('{"format": 1}', "is not a shape file: model")],
)
def test_what_is_no_shape_file_is_refused(folder, text, fact):
    (folder / SHAPES).write_text(text)
    with pytest.raises(InputError, match=fact):
        load_compact(folder, build())


def test_a_missing_file_and_a_torn_one_are_reported_by_name(folder):
    (folder / WEIGHTS).write_bytes(b"{")
    with pytest.raises(InputError, match="small.safetensors is damaged"):
        expand(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match="there is no small.safetensors in"):
        expand(folder)


@pytest.mark.parametrize("name", [SHAPES, WEIGHTS])
def test_a_file_that_may_not_be_read_is_reported_by_name(folder, monkeypatch, name):
    """Whoever runs the tests may be allowed everything: the refusal is the system's, made here."""

    def refuse(path, *args, **kwargs):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    owner, method = (shapes.Path, "read_text") if name == SHAPES else (shapes, "safe_open")
    real = getattr(owner, method)
    monkeypatch.setattr(owner, method, refuse)
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        expand(folder)


@pytest.mark.parametrize(
    "values, fact",
    [
        ({"shape": [2**20, 3, 4096, 4096]}, "an input of 1048576 x 3 x 4096 x 4096 numbers"),
        ({"shape": [-1, 3, 8, 8]}, "is not a shape file: inputs.0.shape.0"),
        ({"shape": [2, 3, 8]}, "the model does not take the inputs that the shape file names"),
        ({"shape": [2, 3, 9, 9]}, "the model does not take the inputs that the shape file names"),
        ({"shape": [0, 3, 1, 1]}, "the model does not take the inputs that the shape file names"),
        ({"dtype": "float8_e4m3fn"}, "a type of numbers `float8_e4m3fn`"),
        ({"dtype": "int64"}, "the model does not take the inputs that the shape file names"),
        ({"dtype": "load"}, "a type of numbers `load`"),
        ({"name": "x y"}, "the model does not take the inputs that the shape file names"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_reported(folder, values, fact):
    edit(folder, lambda shapes: shapes["inputs"][0].update(values))
    with pytest.raises(InputError) as error:
        load_compact(folder, build())
    assert fact in error.value.message
