"""What is asked of sparse tensor cores, what they are handed, and when they are not believed.

Nothing here runs on such cores. Torch's own classes do run, on a CPU: its compression, its
dispatch and its padding, with the one product at their end replaced by what its C++ should do.
"""

import pytest
import torch
import torch.nn.functional as F
from support.reference_cores import halved, reference_cores
from torch.sparse import SparseSemiStructuredTensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass,
)

from dcil_dsl.extras.sparse_compute import tensor_cores
from dcil_dsl.extras.sparse_compute.tensor_cores import (
    Cores,
    Product,
    cuda_multiply,
    cuda_obstacle,
    multiply,
    why_whole,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
PRODUCT = Product(CPU, torch.bfloat16, (32, 64), True)
RIGHT = reference_cores().multiply


def use(monkeypatch, multiply, obstacle=lambda device, dtype: ""):
    monkeypatch.setattr(tensor_cores, "CORES", Cores(obstacle, multiply))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_that_is_right_is_used(monkeypatch, dtype, has_bias):
    use(monkeypatch, RIGHT)
    assert why_whole(PRODUCT._replace(dtype=dtype, has_bias=has_bias)) == ""


def one_place_wrong(x, w, b):
    w = w.clone()
    row = int(w.abs().amax(1).argmax())
    place = int(w[row].abs().argmax())
    w[row, place ^ 1], w[row, place] = w[row, place], w[row, place ^ 1].clone()
    return RIGHT(x, w, b)


def does_not_run(x, w, b):
    raise RuntimeError("CUDA error: operation not supported\nwhen calling cusparseLtMatmul")


@pytest.mark.parametrize(
    "wrong, why",
    [
        (one_place_wrong, "its product is off by"),
        (lambda x, w, b: RIGHT(x, w, b) * float("nan"), "its product is off by nan"),
        (lambda x, w, b: RIGHT(x, w, None), "its product is off by"),
        (lambda x, w, b: RIGHT(x, w.flip(1), b), "its product is off by"),
        (lambda x, w, b: RIGHT(x, w, b).float(), "its product is torch.float32 of (64, 32)"),
        (lambda x, w, b: RIGHT(x[:64:2], w, b), "its product is torch.bfloat16 of (32, 32)"),
        (does_not_run, "its kernel failed: CUDA error: operation not supported"),
    ],
)
def test_a_product_that_is_wrong_or_fails_is_not_and_says_why(monkeypatch, wrong, why):
    use(monkeypatch, wrong)
    assert why_whole(PRODUCT).startswith(why)


def test_padded_rows_are_tried_too(monkeypatch):
    use(monkeypatch, lambda x, w, b: RIGHT(x, w, b) * (len(x) % 8 == 0))
    assert "off by" in why_whole(PRODUCT)


def test_each_product_is_tried_once_without_drawing_from_the_runs_numbers(monkeypatch):
    calls, state = [], torch.get_rng_state()
    monkeypatch.setattr(tensor_cores, "CORES", reference_cores(calls))
    assert why_whole(PRODUCT) == why_whole(PRODUCT) == ""
    assert calls == [((64, 64), (32, 64)), ((13, 64), (32, 64))]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_run_is_not_tried(monkeypatch):
    use(monkeypatch, does_not_run, lambda device, dtype: f"no {device.type}")
    assert why_whole(PRODUCT) == "no cpu"


def test_a_kernel_that_fails_later_gives_the_dense_product_and_is_given_up(monkeypatch):
    fails = []
    monkeypatch.setattr(
        tensor_cores,
        "CORES",
        Cores(lambda *_: "", lambda *given: (does_not_run if fails else RIGHT)(*given)),
    )
    assert why_whole(PRODUCT) == ""
    fails.append(True)
    x, w, b = torch.randn(3, 64).bfloat16(), torch.randn(32, 64).bfloat16(), torch.randn(32)
    b = b.bfloat16()
    assert torch.equal(multiply(x, w, b), F.linear(x, w, b))
    assert why_whole(PRODUCT).startswith("its kernel failed: CUDA error")


def test_memory_that_ran_out_is_reported(monkeypatch):
    def greedy(x, w, b):
        raise torch.OutOfMemoryError("out of memory")

    use(monkeypatch, greedy)
    with pytest.raises(torch.OutOfMemoryError):
        multiply(torch.ones(1, 64), torch.ones(32, 64), None)


# -- the device ---------------------------------------------------------------------------------


def test_a_cpu_has_no_sparse_tensor_cores():
    assert cuda_obstacle(CPU, torch.bfloat16) == (
        "the device is a CPU, which has no sparse tensor cores"
    )


@pytest.mark.parametrize(
    "capability, dtype, why",
    [
        ((7, 5), torch.float16, "T4 has no sparse tensor cores: compute capability 7.5"),
        ((8, 0), torch.float16, ""),
        ((8, 0), torch.bfloat16, ""),
        ((9, 0), torch.bfloat16, ""),
        ((9, 0), torch.float32, "sparse tensor cores take bf16 and fp16, not float32"),
        ((12, 0), torch.float64, "sparse tensor cores take bf16 and fp16, not float64"),
    ],
)
def test_a_gpu_has_them_from_ampere_on_for_half_precision(monkeypatch, capability, dtype, why):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    assert cuda_obstacle(GPU, dtype) == why


def test_a_gpu_of_another_maker_is_not_asked(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "a GPU of another maker" in cuda_obstacle(GPU, torch.float16)


# -- torch's own classes, but for the product itself --------------------------------------------


def operands(rows, dtype, has_bias=True, shape=(32, 64)):
    generator = torch.Generator().manual_seed(rows)
    x, w, b = (torch.randn(s, generator=generator) for s in ((rows, shape[1]), shape, shape[:1]))
    w = halved(w)
    w[0, :8] = 0.0  # groups of less than two
    return x.to(dtype), w.to(dtype), b.to(dtype) if has_bias else None


def read_blindly(matrix):
    """What cuSPARSELtOps.cpp sees: no strides, but whether it is contiguous or else transposed."""
    if matrix.is_contiguous():
        return matrix
    size = matrix.shape[::-1]
    return torch.as_strided(matrix, size, (size[1], 1), matrix.storage_offset()).t()


@pytest.fixture
def cusparselt(monkeypatch):
    def compress(w):
        assert w.is_contiguous() and not w.requires_grad and w.data_ptr() % 16 == 0
        return halved(w)

    def product(
        packed,
        matrix,
        bias=None,
        alpha=None,
        out_dtype=None,
        transpose_result=False,
        alg_id=0,
        **more,
    ):
        assert matrix.data_ptr() % 16 == 0 and matrix.shape[1] % 8 == 0
        y = packed.float() @ read_blindly(matrix).float()
        y = (y if bias is None else y + bias.float()[:, None]).to(matrix.dtype)
        return y.t().contiguous() if transpose_result else y

    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    _on_a_cpu(monkeypatch, force_cutlass=False)


@pytest.fixture
def cutlass(monkeypatch):
    def product(packed, meta, matrix):
        dense = sparse_semi_structured_to_dense_cutlass(packed, meta)
        return (dense.float() @ matrix.float()).to(matrix.dtype)

    def product_and_bias(bias, packed, meta, matrix):
        return (product(packed, meta, matrix.float()) + bias.float()[:, None]).to(matrix.dtype)

    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", product)
    monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", product_and_bias)
    _on_a_cpu(monkeypatch, force_cutlass=True)


def _on_a_cpu(monkeypatch, force_cutlass):
    passes = classmethod(lambda cls, tensor: None)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_validate_device_dim_dtype_shape", passes)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_FORCE_CUTLASS", force_cutlass)


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
@pytest.mark.parametrize("library", ["cusparselt", "cutlass"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 13, 64])
def test_through_torchs_compression_and_padding_it_is_the_linear_layer(
    request, library, dtype, has_bias, rows
):
    request.getfixturevalue(library)
    x, w, b = operands(rows, dtype, has_bias)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = cuda_multiply(x, w, b)
    exact = F.linear(x.float(), w.float(), None if b is None else b.float())
    assert found.is_contiguous() and found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
@pytest.mark.parametrize("strange", ["wide", "turned", "late"])
def test_operands_that_lie_otherwise_in_memory_are_laid_out_first(cusparselt, strange):
    """Handed over as they are, the kernel would read other numbers, or from no multiple of 16."""
    x, w, b = operands(16, torch.bfloat16)
    if strange == "wide":
        other = torch.cat([x, x], 1)[:, : x.shape[1]]
    elif strange == "turned":
        other = x.t().contiguous().t()
    else:
        other = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view_as(x).copy_(x)
        w = torch.empty(w.numel() + 1, dtype=w.dtype)[1:].view_as(w).copy_(w)
    with torch.no_grad():
        assert torch.equal(cuda_multiply(other, w, b), cuda_multiply(x, w, b))


def test_a_product_that_comes_back_turned_is_laid_out_as_the_whole_one(monkeypatch):
    """As torch 2.9 gives it: a later .view() of the model would otherwise fail."""
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: w)
    monkeypatch.setattr(F, "linear", lambda x, w, b: (w @ x.t()).t())
    x, w, _ = operands(8, torch.float32)
    found = cuda_multiply(x, w, None)
    assert found.is_contiguous() and torch.equal(found, (w @ x.t()).t())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("library", ["cusparselt", "cutlass"])
def test_torchs_classes_pass_the_check_and_tell_nothing_of_prototypes(
    request, monkeypatch, library
):
    request.getfixturevalue(library)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_PROTOTYPE_WARNING_SHOWN", False)
    use(monkeypatch, cuda_multiply)
    assert why_whole(PRODUCT) == ""


def test_what_torch_refuses_is_computed_whole(monkeypatch):
    """Its own validation: here of the device, elsewhere of shapes, as CUTLASS takes fewer."""
    use(monkeypatch, cuda_multiply)
    assert why_whole(PRODUCT).startswith("its kernel failed: ")
