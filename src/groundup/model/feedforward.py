"""Feed-forward: what each position does with itself. B batch, T time, D width, F inner width, E experts.

Each kind is a module `(x, tap=no_tap) -> x`. It shows to `tap` how strongly its inner units answer, as `active`. A
tensor of shape (B, T) that it shows as `auxiliary_loss` is added to the loss of each token.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.settings import GELU, Dense, Experts, GeGLU, ModelConfig, ReLU, ReLUSquared, SwiGLU

Activation = Callable[[Tensor], Tensor]
Tap = Callable[[str, Tensor], None]
"""Is shown intermediate tensors by name."""


def no_tap(name: str, tensor: Tensor) -> None:
    """For callers who do not look inside."""


class AuxiliaryLosses:
    """A tap that keeps what blocks ask the loss to add for each token, and looks at nothing else."""

    def __init__(self, earlier: Float[Tensor, "B T"] | None = None) -> None:
        self._kept = [] if earlier is None else [earlier]
        self._is_open = True

    def __call__(self, name: str, tensor: Tensor) -> None:
        if self._is_open and name.endswith("auxiliary_loss"):
            self._kept.append(tensor)

    def beside(self, tap: Tap) -> Tap:
        """A tap that shows everything to both."""

        def show(name: str, tensor: Tensor) -> None:
            self(name, tensor)
            tap(name, tensor)

        return self if tap is no_tap else show

    def total(self) -> Float[Tensor, "B T"] | None:
        """Their sum, None if there are none. Afterwards nothing is kept: a block that is computed again in the backward
        pass would leave a graph here."""
        self._is_open = False
        return torch.stack(self._kept).sum(dim=0) if self._kept else None


def looks_inside(tap: Tap) -> bool:
    return not (tap is no_tap or isinstance(tap, AuxiliaryLosses))


def under(prefix: str, tap: Tap) -> Tap:
    """A tap that shows to `tap` what it is shown, with `prefix` before its name."""
    if not looks_inside(tap):  # nothing that differs between layers: compiled for one, a block serves for all
        return tap
    return lambda name, tensor: tap(f"{prefix}.{name}", tensor)


class FeedForward(nn.Module):
    """down(activation(up(x))), or gated: down(activation(gate(x)) × up(x))."""

    TP = {"gate": "column", "up": "column", "down": "row"}

    def __init__(self, d_model: int, d_ff: int, activation: Activation, bias: bool, is_gated: bool = False) -> None:
        super().__init__()
        self.activation = activation
        if is_gated:
            self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "*rows D"], tap: Tap = no_tap) -> Float[Tensor, "*rows D"]:
        return self.compute(x, tap, self.up, self.down, getattr(self, "gate", None))

    def compute(self, x: Tensor, tap: Tap, up: Activation, down: Activation, gate: Activation | None = None) -> Tensor:
        """With any linear maps, such as one expert's of a stack."""
        active = self.activation(up(x) if gate is None else gate(x))  # (*rows, F)
        tap("active", active)
        return down(active if gate is None else active * up(x))


class StackedLinear(nn.Module):
    """A linear map for each expert. N rows, K input width, J output width."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight for layer in layers]).detach())  # (E, J, K)
        self.bias: nn.Parameter | None = None
        if layers[0].bias is not None:
            self.bias = nn.Parameter(torch.stack([layer.bias for layer in layers])[:, None].detach())  # (E, 1, J)

    def each(self) -> list[Activation]:
        """The maps one by one."""
        biases = [None] * len(self.weight) if self.bias is None else self.bias.flatten(1).unbind()
        return [partial(F.linear, weight=w, bias=b) for w, b in zip(self.weight.unbind(), biases, strict=True)]

    def together(self, ends: Int[Tensor, "E"]) -> Activation:
        """All maps at once, in one kernel of a GPU, for the rows of expert 0, then those of expert 1, … that end at
        `ends`, which no one has to wait for."""

        def multiply(rows: Float[Tensor, "N K"]) -> Float[Tensor, "N J"]:
            weight: Tensor = self.weight
            if torch.is_autocast_enabled(rows.device.type):
                dtype = torch.get_autocast_dtype(rows.device.type)
                rows, weight = rows.to(dtype), weight.to(dtype)
            product: Tensor = F.grouped_mm(rows, weight.mT, offs=ends)
            if self.bias is None:
                return product
            row = torch.arange(len(rows), device=rows.device)
            return product + self.bias.flatten(1)[torch.searchsorted(ends, row, right=True)].to(product.dtype)

        return multiply


class StackedExperts(FeedForward):
    """A feed-forward for each expert, with their linear maps stacked. N rows, E experts."""

    def __init__(self, experts: Sequence[FeedForward]) -> None:
        nn.Module.__init__(self)
        self.activation = experts[0].activation
        for name, _ in experts[0].named_children():
            setattr(self, name, StackedLinear([expert.get_submodule(name) for expert in experts]))  # type: ignore[misc]

    def forward(self, rows: Float[Tensor, "N D"], expert: Int[Tensor, "N"], tap: Tap) -> Float[Tensor, "N D"]:  # type: ignore[override]
        """What its `expert` makes of each row; they are in the experts' order."""
        stacks: dict[str, StackedLinear] = dict(self.named_children())  # type: ignore[arg-type]
        n_experts = len(stacks["up"].weight)
        if self._fit_the_kernel(rows) and not looks_inside(tap):
            ends = torch.searchsorted(expert, torch.arange(n_experts, device=rows.device), right=True).int()
            return self.compute(rows, tap, **{name: stack.together(ends) for name, stack in stacks.items()})
        maps = zip(*(stack.each() for stack in stacks.values()), strict=True)
        shares = rows.split(_sizes(expert, n_experts))
        answers = (
            self.compute(share, tap, **dict(zip(stacks, each, strict=True)))
            for share, each in zip(shares, maps, strict=True)
        )
        return torch.cat([*answers])

    def _fit_the_kernel(self, rows: Tensor) -> bool:
        """It is a GPU's, and wants rows of whole 16 bytes."""
        widths = self.down.weight.shape[1:]
        return rows.is_cuda and rows.dtype != torch.float64 and all(n * rows.itemsize % 16 == 0 for n in widths)


class MixtureOfExperts(nn.Module):
    """The router's `n_active` best experts for each token, weighted by how sure it is of them, and the shared ones."""

    TP = {"experts": "expert"}

    def __init__(self, config: ModelConfig, settings: Experts) -> None:
        super().__init__()
        self.settings = settings
        self.mean_over_row: Callable[[Tensor], Tensor] = _mean_over_row
        """Another where a rank has only a part of each row's positions."""
        d_model, d_ff = config.d_model, config.feedforward_width
        self.router = nn.Linear(d_model, settings.n_experts, bias=False)
        self.experts = StackedExperts([make_dense(settings.expert, d_model, d_ff) for _ in range(settings.n_experts)])
        self.shared = make_dense(settings.expert, d_model, settings.n_shared * d_ff) if settings.n_shared else None

    def forward(self, x: Float[Tensor, "B T D"], tap: Tap = no_tap) -> Float[Tensor, "B T D"]:
        scores = self.router(x)
        probability = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)  # (B, T, E)
        weight, chosen = probability.topk(self.settings.n_active, dim=-1)  # (B, T, active)
        if self.settings.normalise:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        tap("router", probability)
        tap("auxiliary_loss", self.settings.balance * imbalance(probability, chosen, self.mean_over_row))
        rows, (expert, order) = x.flatten(0, 1), chosen.flatten().sort(stable=True)
        token = order // self.settings.n_active  # the rows that go to expert 0, then those to expert 1, …
        answers = self.experts(rows[token], expert, tap) * weight.flatten()[order, None].to(x.dtype)
        output = torch.zeros_like(rows).index_add(0, token, answers).view_as(x)
        return output if self.shared is None else output + self.shared(x, tap)


def _mean_over_row(x: Float[Tensor, "B T E"]) -> Float[Tensor, "B 1 E"]:
    return x.mean(dim=1, keepdim=True)


def imbalance(
    probability: Float[Tensor, "B T E"],
    chosen: Int[Tensor, "B T active"],
    mean_over_row: Callable[[Tensor], Tensor] = _mean_over_row,
) -> Float[Tensor, "B T"]:
    """E Σ share(e) × probability(e) for each token: 1 where the row's choices are spread evenly, E / active where all
    its tokens choose the same experts and are sure of them.

    `share` is the part of the row's choices that fell on e, padding included; the gradient goes through the probability
    alone (Fedus et al. 2021, arXiv:2101.03961, eq. 4). Over the row and not the batch, as in DeepSeek-V3 (2024,
    arXiv:2412.19437, eq. 17), so that it does not matter how a batch is cut into micro-batches.
    """
    n_experts = probability.shape[-1]
    picked = F.one_hot(chosen, n_experts).sum(dim=-2).to(probability.dtype)  # (B, T, E)
    share = mean_over_row(picked) / chosen.shape[-1]
    return n_experts * (share * probability).sum(dim=-1)


def _sizes(expert: Int[Tensor, "N"], n_experts: int) -> list[int]:
    """How many rows go to each expert; on the meta device, which knows no values, equally many."""
    if expert.is_meta:
        each, left = divmod(len(expert), n_experts)
        return [each + (number < left) for number in range(n_experts)]
    sizes: list[int] = expert.bincount(minlength=n_experts).tolist()
    return sizes


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's approximation, x (1 + tanh z) / 2 with z = √(2/π) (x + 0.044715 x³).

    Where it is compiled, it is written as x / (1 + e^(−2z)), which is the same: on a CPU torch's tanh takes about three
    times as long as its exponential.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def make_dense(settings: Dense, d_model: int, d_ff: int) -> FeedForward:
    match settings:
        case GELU(approximate="tanh") | GeGLU(approximate="tanh"):
            activation: Activation = gelu_tanh
        case GELU() | GeGLU():
            activation = F.gelu
        case ReLU():
            activation = F.relu
        case ReLUSquared():
            activation = _relu_squared
        case SwiGLU():
            activation = F.silu
    return FeedForward(d_model, d_ff, activation, settings.bias, is_gated=isinstance(settings, SwiGLU | GeGLU))


def make_feedforward(config: ModelConfig) -> nn.Module:
    """The feed-forward that `config` describes.

    >>> feedforward = make_feedforward(ModelConfig(d_model=16, d_ff=24, feedforward=SwiGLU()))
    >>> feedforward(torch.randn(2, 10, 16)).shape
    torch.Size([2, 10, 16])
    """
    match config.feedforward:
        case Experts() as settings:
            return MixtureOfExperts(config, settings)
        case settings:
            return make_dense(settings, config.d_model, config.feedforward_width)
