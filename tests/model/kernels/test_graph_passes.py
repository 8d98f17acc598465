"""Graph passes change what is computed how, and not what comes out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from groundup.model.kernels.graph_passes import BiasesApart, JoinedMatmuls, aten, linear


def count(module: GraphModule, operation: object) -> int:
    return len(module.graph.find_nodes(op="call_function", target=operation))


def test_matmuls_of_one_input_become_one() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(6, 5), torch.randn(6, 5), torch.randn(7)]
    weights = [torch.randn(width, 5) for width in (3, 4, 2, 7, 8)]

    def matmuls(x: Tensor, other: Tensor, bias: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        a, b, c, with_bias, alone = weights
        return linear(x, a), linear(x, b).exp(), linear(x, c), linear(x, with_bias, bias), linear(other, alone)

    joined: list[GraphModule] = []

    def passed(module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., object]:
        assert count(module, linear) == 5
        JoinedMatmuls()(module.graph)
        module.recompile()
        joined.append(module)
        return module

    expected = matmuls(*inputs, *weights)
    for got, plain in zip(torch.compile(matmuls, backend=passed)(*inputs, *weights), expected, strict=True):
        assert_close(got, plain)
    assert count(joined[0], linear) == 3, "of one input without biases, with them, of another input"


def test_biases_are_added_apart_and_their_gradients_summed_in_parts() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3), torch.randn(2 * 64, 5), torch.randn(5, 3), torch.randn(64, 3).bfloat16()

    def plain(bias: Tensor, x: Tensor, weight: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return torch.addmm(bias, x, weight), x.sum(dim=0, keepdim=True), y.sum(dim=0), x[:60].sum(0), x.sum(1)

    module = make_fx(plain, tracing_mode="fake")(*inputs)
    BiasesApart()(module.graph)
    module.recompile()
    assert count(module, aten.addmm.default) == 0
    assert count(module, aten.sum.dim_IntList) == 2 * 2 + 2, "60 rows do not part into 64"
    for number, (got, exact) in enumerate(zip(module(*inputs), plain(*inputs), strict=True)):
        assert got.dtype == exact.dtype, number
        assert_close(got, exact)
