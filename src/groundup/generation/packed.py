"""Packed: a model whose linear maps hold their weights as a CPU reads them fastest, for generation.

A step of generation reads every weight once for a few tokens, so it takes as long as reading them from memory: fewer
bytes, in the order in which they are used. N rows, K input width, J output width.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup.model.attention import GroupedQueryAttention
from groundup.model.dropout import Dropout
from groundup.model.feedforward import FeedForward, MixtureOfExperts
from groundup.model.latent import LatentAttention
from groundup.model.transformer import Transformer

Precision = Literal["float32", "bfloat16", "int8", "int4"]
Multiply = Callable[[Tensor], Tensor]
"""(*rows, K) bfloat16 → (*rows, J)."""

GROUP = 32
"""Weights of int4 that share a scale and a zero."""
LANES = 32
"""The int8 kernel reads so many channels at once."""
TOGETHER: dict[type[nn.Module], tuple[str, ...]] = {
    GroupedQueryAttention: ("query", "key", "value"),
    FeedForward: ("gate", "up"),
}
"""Linear maps of one input, which are one product."""
UNPACKED: dict[type[nn.Module], tuple[str, ...]] = {
    LatentAttention: ("key", "value"),  # are read as matrices
    MixtureOfExperts: ("router", "experts"),  # a rounded router would choose others; stacks are of another kind
}


def pack(model: Transformer, precision: Precision) -> Transformer:
    """A model of the same structure with packed linear maps, in evaluation; all else it shares with `model` where that
    is of the type that is computed in, and has a copy of where not. Stacked experts are left as they are.

    Args:
        precision: of the linear maps' weights. `float32`: the live ones of a float32 model, where they are trained;
            everything is computed in float32. `bfloat16`: as they are; `int8`: 256 steps for each row; `int4`: 16 for
            each 32 weights, but for the head, which is int8. With these everything is computed in bfloat16.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=32, n_layers=1)).bfloat16().eval()
    >>> tokens, packed = torch.tensor([[5, 6, 7]]), pack(model, "bfloat16")
    >>> torch.allclose(packed(tokens), model(tokens), atol=0.01), packed.embed.weight is model.embed.weight
    (True, True)
    """
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    packed: Transformer = _copy(model, precision, dtype)  # type: ignore[assignment]
    if precision == "int4" and model.head is not None:  # rounded to 16 steps, it alone would cost 7 % perplexity
        packed._modules["head"] = Packed([model.head], "int8")
    packed.multi_token = nn.ModuleList()
    packed.packed_as = precision  # type: ignore[assignment]
    return packed.eval()


def refresh(packed: Transformer, model: Transformer) -> None:
    """Pack the weights of `model`, such as they are now, into what `pack` made."""
    precision: Precision = packed.packed_as  # type: ignore[assignment]
    packed._modules.clear()  # frees the old ones first
    packed.__dict__.update(pack(model, precision).__dict__)


def _copy(module: nn.Module, precision: Precision | None, dtype: torch.dtype) -> nn.Module:
    """Packed, or with None only brought to `dtype`."""
    if precision is not None and type(module) is nn.Linear:
        return Packed([module], precision)
    if isinstance(module, nn.Identity | Dropout):
        return Same()
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)  # of a block that is compiled for training: it belongs to the old one
    for held in ("_parameters", "_buffers"):
        twin.__dict__[held] = {name: _in(dtype, tensor) for name, tensor in module.__dict__[held].items()}
    unpacked = _names(module, UNPACKED)
    together = {name: module._modules[name] for name in _names(module, TOGETHER) if name in module._modules}
    joined = dict[str, nn.Module | None]()
    linears = [child for child in together.values() if type(child) is nn.Linear]
    if precision not in (None, "float32") and len(linears) == len(together) > 1:
        whole = Packed(linears, precision)
        joined = {name: Part(whole, number) for number, name in enumerate(together)}
    twin._modules = joined | {
        name: child if child is None else _copy(child, None if name in unpacked else precision, dtype)
        for name, child in module._modules.items()
        if name not in joined
    }
    return twin


def _names(module: nn.Module, of: dict[type[nn.Module], tuple[str, ...]]) -> tuple[str, ...]:
    return next((names for kind, names in of.items() if isinstance(module, kind)), ())


def _in(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    brought = tensor.detach().to(dtype)
    return nn.Parameter(brought, requires_grad=False) if isinstance(tensor, nn.Parameter) else brought


class Packed(nn.Module):
    """Linear maps of one input as one, without gradients."""

    def __init__(self, linears: Sequence[nn.Linear], precision: Precision) -> None:
        super().__init__()
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        weight: Tensor = linears[0].weight.detach()
        bias: Tensor | None = linears[0].bias
        if len(linears) > 1:
            weight = torch.cat([linear.weight.detach() for linear in linears])
            bias = None if bias is None else torch.cat([linear.bias.detach() for linear in linears])
        bias = None if bias is None else bias.detach().to(dtype)
        self._sizes = [linear.out_features for linear in linears]
        self._multiply = PRECISIONS[precision](weight, bias, has_kernel(precision))
        self._latest: list[Any] = [None, ()]  # changed in place: to set an attribute of a module takes microseconds

    def __call__(self, x: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows J"]:
        return self._multiply(x)  # without the hooks of a module, which take microseconds as well

    def part(self, x: Float[Tensor, "*rows K"], number: int) -> Float[Tensor, "*rows J"]:
        """What one of the linear maps makes of `x`; all are computed when the first of them is asked."""
        parts: Sequence[Tensor]
        asked, parts = self._latest
        if asked is not x:
            parts = self(x).split(self._sizes, dim=-1)
        self._latest[:] = (None, ()) if number == len(parts) - 1 else (x, parts)
        return parts[number]


class Part(nn.Module):
    """One of several linear maps of the same input."""

    def __init__(self, whole: Packed, number: int) -> None:
        super().__init__()
        self.whole, self._part = whole, partial(whole.part, number=number)

    def __call__(self, x: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows J"]:
        return self._part(x)


class Same(nn.Module):
    """What changes nothing in evaluation."""

    def __call__(self, x: Tensor, *ignored: Any) -> Tensor:
        return x


def bfloat16(weight: Float[Tensor, "J K"], bias: Float[Tensor, "J"] | None, by_kernel: bool) -> Multiply:
    """In the order in which oneDNN reads weights, so that nothing is reordered at each call."""
    weight, (n_out, n_in) = weight.bfloat16(), weight.shape
    product: Multiply = partial(F.linear, weight=weight, bias=bias)
    if by_kernel:
        held = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        kernel, empty = torch.ops.mkldnn._linear_pointwise.default, list[Any]()

        def product(rows: Tensor) -> Tensor:
            several: Tensor = kernel(rows, held, bias, "none", empty, "")
            return several

    # For some shapes oneDNN adds up one row in another order than several; there a row is given a second one. That
    # changes one number in some thousands, rounded to bfloat16: so many are compared.
    n = min(max(2, 2**16 // n_out), 64)
    probe = torch.randn(n, n_in, generator=torch.Generator().manual_seed(0)).bfloat16()
    if torch.equal(product(probe), torch.cat([product(row) for row in probe.split(1)])):
        return product

    def multiply(x: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows J"]:
        if x.numel() > n_in:
            return product(x)
        return product(x.reshape(1, n_in).expand(2, n_in))[:1].view(*x.shape[:-1], n_out)

    return multiply


def int8(weight: Float[Tensor, "J K"], bias: Float[Tensor, "J"] | None, by_kernel: bool) -> Multiply:
    """A row is a scale times whole numbers from −127 to 127."""
    n_in = weight.shape[1]
    filled = F.pad(weight.float(), (0, -n_in % LANES))
    scale = filled.abs().amax(dim=1).clamp(min=1e-30) / 127
    codes = (filled / scale[:, None]).round().to(torch.int8)
    if not by_kernel:
        return bfloat16((codes * scale[:, None])[:, :n_in], bias, by_kernel=False)
    return Kernel("int8", codes, scale, bias, n_in)


def float32(weight: Float[Tensor, "J K"], bias: Float[Tensor, "J"] | None, by_kernel: bool) -> Multiply:
    """As they are, in the memory where they are trained; a copy of those whose width is no multiple of 32."""
    if not by_kernel:
        return partial(F.linear, weight=weight.float(), bias=bias)
    weight, n_in = weight.float(), weight.shape[1]
    filled = F.pad(weight, (0, -n_in % LANES)) if n_in % LANES else weight.contiguous()
    return Kernel("float32", filled, torch.empty(0), bias, n_in)


class Kernel:
    """Multiplies in our kernel, by a matrix whose rows are filled up with zeros to a multiple of 32."""

    def __init__(self, precision: Precision, weights: Tensor, scale: Tensor, bias: Tensor | None, n_in: int) -> None:
        bias = torch.zeros(len(weights)) if bias is None else bias.float()
        self._held = weights, scale, bias  # whose addresses each call has
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._run, n_fields = _kernel(precision)
        (self._n_out, self._width), self._n_in = weights.shape, n_in
        self._same = [*(tensor.data_ptr() for tensor in self._held), self._width, self._n_out]
        self._n_fields = n_fields
        self._call = np.array(self._same + [0] * (n_fields - len(self._same) + 2))
        """With two zeros behind it for the threads to count with."""

    def __call__(self, x: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows J"]:
        x = x.to(self._dtype)
        rows = x.contiguous() if self._n_in == self._width else F.pad(x, (0, self._width - self._n_in))
        n_rows, n_threads = x.numel() // self._n_in, torch.get_num_threads()
        product = x.new_empty((*x.shape[:-1], self._n_out))
        room_bytes = 2 * n_rows * self._width + 64 + -(-4 * n_rows // 64) * 64
        room, call = torch.empty(n_threads * room_bytes, dtype=torch.uint8), self._call.copy()
        address = call.ctypes.data
        counters, first = address + 8 * self._n_fields, len(self._same)
        call[first:-2] = rows.data_ptr(), product.data_ptr(), room.data_ptr(), counters, n_rows, room_bytes
        self._run(address, n_threads)
        return product


@functools.cache
def _kernel(precision: Precision) -> tuple[Callable[[int, int], None], int]:
    """The kernel, and how many numbers its call has."""
    from groundup.compiled import linear
    from groundup.compiled.loops import on_threads

    return on_threads(getattr(linear, f"multiply_{precision}"), linear.CALL), len(linear.NAMES)


def int4(weight: Float[Tensor, "J K"], bias: Float[Tensor, "J"] | None, by_kernel: bool) -> Multiply:
    """A group of a row is 16 numbers from its least to its greatest. With rows and channels of zeros up to what torch's
    kernel can read."""
    (n_out, n_in), fill = weight.shape, -weight.shape[1] % GROUP
    groups = F.pad(weight.float(), (0, fill, 0, -n_out % 16)).unflatten(1, (-1, GROUP))  # (J, groups, GROUP)
    least = groups.amin(dim=-1, keepdim=True)
    scale = ((groups.amax(dim=-1, keepdim=True) - least) / 15).clamp(min=1e-30).bfloat16()
    middle = (least + 8 * scale).bfloat16()
    codes = ((groups - middle) / scale + 8).round().clamp(0, 15).int()
    if not by_kernel:
        return bfloat16(((codes - 8) * scale.float() + middle).flatten(1)[:n_out, :n_in], bias, by_kernel=False)
    held = torch._convert_weight_to_int4pack_for_cpu(codes.flatten(1), 1)
    steps = torch.cat((scale, middle), dim=-1).transpose(0, 1).contiguous()  # (groups, J, 2)

    def multiply(x: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows J"]:
        rows = (F.pad(x, (0, fill)) if fill else x).reshape(-1, n_in + fill)
        product = torch._weight_int4pack_mm_for_cpu(rows, held, GROUP, steps)[:, :n_out].reshape(*x.shape[:-1], n_out)
        return product if bias is None else product + bias

    return multiply


PRECISIONS: dict[Precision, Callable[[Tensor, Tensor | None, bool], Multiply]] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "int8": int8,
    "int4": int4,
}


@functools.cache
def has_kernel(precision: Precision) -> bool:
    """Whether torch's operation for it is here and right: they are private, and may be missing on a machine or go from
    one version to the next. Without it the weights are the same, but bfloat16 in memory."""
    make, generator = PRECISIONS[precision], torch.Generator().manual_seed(0)
    weight, rows, bias = (torch.randn(shape, generator=generator) for shape in ((48, 96), (3, 96), (48,)))
    rows, bias = (rows, bias) if precision == "float32" else (rows.bfloat16(), bias.bfloat16())
    try:
        product = make(weight, bias, True)(rows)
    except (AttributeError, RuntimeError):
        return False
    # Of 96 products and about 10 in size, rounded to 8 bits one time more or less.
    return torch.allclose(product, make(weight, bias, False)(rows), atol=0.25, rtol=0.02)
