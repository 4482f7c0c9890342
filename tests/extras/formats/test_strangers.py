"""Networks that no other test names: each file computes as its network, and has all of its zeros.

An exporter that takes a network compares the outputs itself and refuses a difference, so a test
only asserts that the file is written, that its zeros are those of the network, and that it is
sound. Where an engine cannot take a network, the error says so.
"""

import pytest
import torch
from support.library import needed
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed, Origin
from dcil_dsl.exporting.exporters import EXPORTERS, exporter_for
from dcil_dsl.plan.plan import Model, Size

needed("onnx"), needed("onnxruntime"), needed("onnxscript"), needed("openvino")


class Recurrent(nn.Module):
    """Two directions; engines store their weights in one tensor, gate by gate."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class TwoInputs(nn.Module):
    """An image and a row of a table."""

    def __init__(self):
        super().__init__()
        self.image, self.table = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, image, table):
        seen = self.image(image).relu().mean((2, 3))
        return self.head(torch.cat([seen, self.table(table).relu()], 1))


class DictOutput(nn.Module):
    """Outputs with names out of order, a list, and none."""

    def __init__(self):
        super().__init__()
        self.body, self.z, self.a = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        body = self.body(x).relu()
        return {"z": self.z(body), "a": self.a(body), "none": None, "list": [body, body + 1]}


class Tokens(nn.Module):
    """A transformer with a mask."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, ids, mask):
        hidden = self.layer(self.table(ids), src_key_padding_mask=mask == 0)
        weight = mask[..., None].float()
        return self.head((hidden * weight).sum(1) / weight.sum(1))


def signal():
    """A one-dimensional network with a depthwise and a transposed convolution."""
    return nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.GELU(),
        nn.Conv1d(16, 16, 3, groups=16, padding="same"),
        nn.MaxPool1d(2),
        nn.ConvTranspose1d(16, 8, 4, 2, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def grouped():
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, groups=4, padding=1, padding_mode="reflect"),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 16, 3, stride=2, dilation=2, groups=2),
        nn.PixelShuffle(2),
        nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(54, 5),
    )


def volume():
    return nn.Sequential(
        nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(2), nn.AdaptiveMaxPool1d(2)
    )


def phone():
    import torchvision

    return torchvision.models.mobilenet_v3_small(num_classes=10)


def of(*shape, dtype="float32"):
    return Size(shape=(1, *shape), dtype=dtype)


NETS = {
    "recurrent": (Recurrent, {"x": of(7, 6)}),
    "two inputs": (TwoInputs, {"image": of(3, 12, 12), "table": of(5)}),
    "dict output": (DictOutput, {"x": of(6)}),
    "tokens": (Tokens, {"ids": of(7, dtype="int64"), "mask": of(7, dtype="int64")}),
    "signal": (signal, {"x": of(4, 40)}),
    "grouped": (grouped, {"x": of(8, 16, 16)}),
    "volume": (volume, {"x": of(2, 6, 8, 8)}),
    "phone": (phone, {"x": of(3, 64, 64)}),
}


@torch.no_grad()
def deployed(name):
    """The network with 70% zeros in every weight but embeddings."""
    torch.manual_seed(0)
    make, sizes = NETS[name]
    network = make().eval()
    for module in network.modules():
        for weight in module.parameters(recurse=False):
            if weight.dim() > 1 and not isinstance(module, nn.Embedding):
                weight[torch.rand(weight.shape) < 0.7] = 0
    origin = Origin(
        recipe="none",
        sha256="",
        model=Model(name=None, classes=None, options={}),
        data=None,
        path="sparse",
        step=0,
        promises=(),
        sizes=sizes,
    )
    return Deployed(network, origin)


def pruned(network):
    return {
        name: tensor == 0
        for name, tensor in network.state_dict().items()
        if tensor.dim() > 1 and (tensor == 0).float().mean() > 0.3
    }


@pytest.mark.parametrize("name", NETS)
def test_a_stranger_keeps_its_outputs_and_its_zeros(name, tmp_path):
    given = deployed(name)
    for format in ("torch-export", "onnx", "openvino"):
        place = tmp_path / f"a{EXPORTERS[format].suffix}"
        assert "batch size: any" in EXPORTERS[format].write(given, place)
        read = exporter_for(place).read(place)
        assert exporter_for(place).verify(read) == []
        for weight, zeros in pruned(given.network).items():
            if weight.startswith("lstm.") and format != "torch-export":
                assert weight not in read.tensors, "its gates are in another order"
            else:
                assert torch.equal(read.tensors[weight] == 0, zeros), (format, weight)


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3).bfloat16()

    def forward(self, x):
        return self.linear(x)


class Waves(nn.Linear):
    def forward(self, x):
        return torch.fft.rfft(super().forward(x))


class Noise(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(x.shape[0], 3)


@pytest.mark.parametrize(
    "network, dtype, format, says",
    [
        (Halves(), "bfloat16", "onnx", "ONNX Runtime cannot run the network: NotImplemented"),
        (Halves(), "bfloat16", "openvino", "does not run on a batch of 2: TypeError"),
        (Waves(8, 3), "float32", "onnx", "outputs of other shapes"),
        (Noise(8, 3), "float32", "torch-export", "differs from the network"),
    ],
)
def test_a_network_that_an_engine_cannot_run_is_refused(network, dtype, format, says, tmp_path):
    origin = deployed("dict output").origin
    given = Deployed(network.eval(), origin.model_copy(update={"sizes": {"x": of(8, dtype=dtype)}}))
    with pytest.raises(InputError, match=says):
        EXPORTERS[format].write(given, tmp_path / f"a{EXPORTERS[format].suffix}")
    assert not list(tmp_path.iterdir())
