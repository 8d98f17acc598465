"""Graph passes: what torch's compiler does otherwise with a block on a CPU. The same sums, in less time.

N rows, D input width, F output width.
"""

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

aten, linear, as_type = torch.ops.aten, torch._C._nn.linear, torch.ops.prims.convert_element_type.default
PARTS = 64
"""A sum over rows is made of so many sums of neighbouring rows."""


class _Pass(CustomGraphPass):
    """What was compiled is kept for as long as this file stays as it is."""

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


class JoinedMatmuls(_Pass):
    """Matmuls of one (N, D) input with several (F, D) matrices become one, with the matrices below one another: query,
    key and value, gate and up. A wide matmul takes less time than narrow ones, and so do its two gradients."""

    def __call__(self, graph: Graph) -> None:
        alike = defaultdict(list)
        for node in graph.find_nodes(op="call_function", target=linear):
            x, weight, bias = (*node.args, None)[:3]
            if weight.op == "placeholder":  # and not the result of one of these matmuls
                alike[x, bias is None].append((node, weight, bias))
        for (x, without_bias), matmuls in alike.items():
            if len(matmuls) > 1:
                nodes, weights, biases = zip(*matmuls, strict=True)
                widths = [weight.meta["example_value"].shape[0] for weight in weights]
                with graph.inserting_before(nodes[0]):
                    weight = graph.call_function(torch.cat, (weights,))
                    bias = None if without_bias else graph.call_function(torch.cat, (biases,))
                    product = graph.call_function(linear, (x, weight, bias))
                    parts = graph.call_function(torch.split, (product, widths, -1))
                    shares = [graph.call_function(operator.getitem, (parts, number)) for number in range(len(nodes))]
                for node, share in zip(nodes, shares, strict=True):
                    node.replace_all_uses_with(share)
                    graph.erase_node(node)


class BiasesApart(_Pass):
    """A bias is added by the loop that reads the (N, F) product anyway; `addmm` would first write it into all N rows
    of its result, and read it again there. A bias's gradient, a sum over N rows, is made of `PARTS` sums in float32;
    the compiler's own loop goes down all the rows for every 32 columns."""

    def __call__(self, graph: Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
            bias, x, weight = node.args
            if _value(bias).ndim == 1 and not node.kwargs:
                with graph.inserting_before(node):
                    product = _call(graph, aten.mm.default, x, weight)
                    node.replace_all_uses_with(_call(graph, aten.add.Tensor, product, bias))
                graph.erase_node(node)
        for node in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
            rows, dimensions, *_ = node.args
            n_rows, *width = _value(rows).shape
            if list(dimensions) == [0] and len(width) == 1 and n_rows % PARTS == 0 and not node.kwargs:
                with graph.inserting_before(node):
                    parted = _call(graph, aten.view.default, rows, [PARTS, n_rows // PARTS, *width])
                    sums = _call(graph, aten.sum.dim_IntList, parted, [1], dtype=torch.float32)
                    whole = _call(graph, aten.sum.dim_IntList, sums, [0])
                    shaped = _call(graph, aten.view.default, whole, list(_value(node).shape))
                    node.replace_all_uses_with(_call(graph, as_type, shaped, _value(rows).dtype))
                graph.erase_node(node)


def _call(graph: Graph, operation: Any, *arguments: Any, **options: Any) -> Node:
    """A node that does `operation`, with what it gives as its `val`."""
    node = graph.call_function(operation, arguments, options)
    node.meta["val"] = operation(*(_value(each) if isinstance(each, Node) else each for each in arguments), **options)
    return node


def _value(node: Any) -> Tensor:
    value: Tensor = node.meta["val"]
    return value
