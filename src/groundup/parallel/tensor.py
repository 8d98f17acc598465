"""Tensor parallelism: each matrix shared by the ranks of one axis (Shoeybi et al. 2019, arXiv:1909.08053), the
positions between them too (Korthikanti et al. 2022, arXiv:2205.05198).

Parameters become DTensors; activations stay plain tensors. Attention and feed-forward are *regions*: hooks bring the
whole input in and add the parts up on the way out, and inside each rank computes with its heads or inner units.
Everything computed between the hooks is a part of a sum, and so is every gradient there; what lies outside is computed
from a stretch of T on each rank where T divides (sequence parallelism), and by every rank alike where not.
B rows, T positions, D width, H heads, V vocabulary, n ranks of the axis.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from groundup.errors import SettingsError
from groundup.model.attention import GroupedQueryAttention
from groundup.model.dropout import Dropout
from groundup.model.feedforward import AuxiliaryLosses, FeedForward, MixtureOfExperts
from groundup.model.latent import LatentAttention
from groundup.model.transformer import Transformer
from groundup.parallel.collectives import enter, gather, scatter, share, sum_before_parts, sum_of


@dataclass
class Region:
    """The ranks that compute a region together."""

    group: ProcessGroup
    sequence: bool = False
    """Whether between regions each rank now holds a stretch of T."""

    @property
    def n(self) -> int:
        return self.group.size()

    @property
    def rank(self) -> int:
        return self.group.rank()

    def own(self, count: int) -> range:
        """The numbers of this rank's share of `count` heads or units; shares differ by at most one."""
        return range(self.rank * count // self.n, (self.rank + 1) * count // self.n)

    def into(self, x: Tensor) -> Tensor:
        """Whole input of a region."""
        return gather(x, self.group) if self.sequence else enter(x, self.group)

    def out_of(self, part: Tensor) -> Tensor:
        """What a region adds to the stream."""
        return scatter(part, self.group) if self.sequence else sum_of(part, self.group)

    def settle(self, length: int) -> None:
        """Whether the stream of T = `length` is cut."""
        self.sequence = length % self.n == 0

    def begin(self, x: Tensor) -> Tensor:
        """This rank's stretch of the stream, before the first block; all of it if T does not divide."""
        self.settle(x.shape[1])
        if not self.sequence:
            return x
        width = x.shape[1] // self.n
        return x.narrow(1, self.rank * width, width)


def tensor_parallel(model: Transformer, mesh: DeviceMesh, experts: DeviceMesh | None = None) -> Region:
    """Split `model`, or a stage of it, over the ranks of the one-axis `mesh`.

    Args:
        experts: axes expert and tensor, where experts are spread too; which goes for one tensor rank as well.

    Raises:
        SettingsError: more ranks than heads.
    """
    region = Region(mesh.get_group())
    if region.n > model.config.n_heads:
        raise SettingsError(
            f"parallel.tensor = {region.n}, but model.n_heads = {model.config.n_heads}: each rank needs a head"
        )
    splitter = _Splitter(mesh, region, experts)
    blocks = [*model.blocks.values(), *(head.get_submodule("block") for head in model.multi_token)]
    if region.n == 1:
        for block in blocks:
            splitter.split_experts(block.get_submodule("feedforward"))
        return region
    for block in blocks:
        splitter.split_block(block)
    splitter.split_ends(model)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in splitter.done:
                splitter.keep_whole(module, name)
    return region


class _Splitter:
    def __init__(self, mesh: DeviceMesh, region: Region, experts: DeviceMesh | None) -> None:
        self.mesh, self.region, self.experts = mesh, region, experts
        self.done: dict[Tensor, nn.Parameter] = {}
        """Each parameter as it was → as it is now; those that are new stand here as well."""
        self.inside: set[nn.Module] = set()
        """Modules whose gradients are parts wherever the stream is cut or not."""

    def split_block(self, block: nn.Module) -> None:
        match attention := block.get_submodule("attention"):
            case GroupedQueryAttention():
                self._split_grouped(attention)
            case LatentAttention():
                self._split_latent(attention)
        match feedforward := block.get_submodule("feedforward"):
            case MixtureOfExperts():
                self._split_mixture(feedforward)
            case FeedForward():
                self._split_dense(feedforward)
        for dropout in (each for each in block.children() if isinstance(each, Dropout)):
            dropout.register_forward_pre_hook(functools.partial(_cut_keys, self.region))
        for part in (attention, feedforward):
            self.inside.update(part.modules())
            part.register_forward_pre_hook(functools.partial(_enter_region, self.region))
            part.register_forward_hook(functools.partial(_leave_region, self.region))

    def _split_grouped(self, attention: GroupedQueryAttention) -> None:
        config, width = attention.config, attention.d_head
        heads = self.region.own(config.n_heads)
        attention.first_head = heads.start
        group = config.n_heads // config.kv_heads
        readers = [head // group for head in heads]
        groups = sorted({*readers})
        if len({readers.count(each) for each in groups}) > 1:
            groups = readers  # the heads of a group are on different ranks: each reads a copy of its own
        queries, pairs = _channels(heads, width), _channels(groups, width)
        if attention.settings.qk_norm == "full":
            for norm, own in ((attention.query_norm, queries), (attention.key_norm, pairs)):
                norm.register_forward_hook(functools.partial(_select_channels, own))
        else:
            self._split_linear(attention.query, queries, 0)
            self._split_linear(attention.key, pairs, 0)
        self._split_linear(attention.value, pairs, 0)
        self._split_linear(attention.out, queries, 1)

    def _split_latent(self, attention: LatentAttention) -> None:
        heads = self.region.own(attention.config.n_heads)
        attention.first_head = heads.start
        self._split_linear(attention.query, _channels(heads, attention.d_head + attention.d_rotary), 0)
        self._split_linear(attention.key, _channels(heads, attention.d_head), 0)
        self._split_linear(attention.value, _channels(heads, attention.d_value), 0)
        self._split_linear(attention.out, _channels(heads, attention.d_value), 1)

    def _split_dense(self, feedforward: FeedForward) -> None:
        for name, linear in feedforward.named_children():
            if isinstance(linear, nn.Linear):
                own = [*self.region.own(feedforward.up.out_features)]
                self._split_linear(linear, own, 1 if name == "down" else 0)

    def _split_mixture(self, mixture: MixtureOfExperts) -> None:
        self.split_experts(mixture)
        if mixture.shared is not None:
            self._split_dense(mixture.shared)

    def split_experts(self, mixture: nn.Module) -> None:
        if not isinstance(mixture, MixtureOfExperts):
            return
        own = [*self.region.own(mixture.experts.down.weight.shape[2])]
        for name, stack in mixture.experts.named_children():
            down = name == "down"
            self.split(stack, "weight", own, 2 if down else 1)
            if stack.bias is not None and down:
                self.keep_whole(stack, "bias", share=self.region.n)
            elif stack.bias is not None:
                self.split(stack, "bias", own, 2)

    def split_ends(self, model: Transformer) -> None:
        """The embedding, the head, and where the stream is cut and put together again."""
        region = self.region
        if model.embed is not None:
            own = [*region.own(model.embed.num_embeddings)]
            self.split(model.embed, "weight", own, 0)
            model.embed.forward = functools.partial(_embedded, model.embed, region, own)  # type: ignore[method-assign]
        blocks = list(model.blocks.values())
        blocks[0].register_forward_pre_hook(lambda _, arguments: (region.begin(arguments[0]), *arguments[1:]))
        last = blocks[-1] if model.head is None else model.norm
        last.register_forward_hook(lambda module, arguments, x: region.into(x))
        if isinstance(model.head, nn.Linear):
            self.inside |= {model.head, *model.project_out.modules()}
            own = [*region.own(model.head.out_features)]
            self._split_linear(model.head, own, 0)
            model.head.register_forward_hook(functools.partial(_whole_scores, region, own))
            model.logprobs = functools.partial(vocabulary_logprobs, region.group, own[0])
        for head in model.multi_token:
            head.get_submodule("block").register_forward_pre_hook(functools.partial(_begin_again, region))
            head.get_submodule("norm").register_forward_hook(lambda module, arguments, x: region.into(x))

    def _split_linear(self, linear: nn.Linear, own: Sequence[int], dim: int) -> None:
        self.split(linear, "weight", own, dim)
        if linear.bias is not None and dim == 0:
            self.split(linear, "bias", own, 0)
        elif linear.bias is not None:
            self.keep_whole(linear, "bias", share=self.region.n)

    def split(self, module: nn.Module, name: str, own: Sequence[int], dim: int) -> None:
        """Let `module.name` be this rank's indices `own` of the parameter along `dim`. Where the ranks' indices are
        equal stretches it is cut, and otherwise kept whole by all, each using its own."""
        parameter = module._parameters[name]
        assert parameter is not None
        count, n = parameter.shape[dim], self.region.n
        even = [*range(self.region.rank * (count // n), (self.region.rank + 1) * (count // n))]
        if count % n == 0 and [*own] == even:  # on every rank, or on none
            self._place(module, name, Shard(dim), lambda: Shard(dim))
        else:
            use = functools.partial(_selected, torch.tensor(own, device="cpu"), dim)
            self._place(module, name, Replicate(), Partial, use)

    def keep_whole(self, module: nn.Module, name: str, share: int = 1) -> None:
        """Every rank has all of `module.name`, or uses a `share`-th of its value."""
        region, inside = self.region, module in self.inside or share > 1

        def gradient() -> Placement:
            return Partial() if region.n > 1 and (inside or region.sequence) else Replicate()

        self._place(module, name, Replicate(), gradient, None if share == 1 else lambda x: x / share)

    def _place(
        self,
        module: nn.Module,
        name: str,
        placement: Placement,
        gradient: Callable[[], Placement],
        use: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Make the parameter a DTensor, and let the module's own code see the local tensor that it computes with."""
        parameter = module._parameters[name]
        assert parameter is not None
        mesh, before = self.mesh, list[Placement]()
        if self.experts is not None and parameter.ndim == 3:
            mesh, before = self.experts, [Shard(0)]
        if parameter not in self.done:
            placed = nn.Parameter(
                distribute_tensor(parameter.data, mesh, [*before, placement], src_data_rank=None),
                requires_grad=parameter.requires_grad,
            )
            self.done |= {parameter: placed, placed: placed}
        module._parameters[name] = self.done[parameter]
        _see_local(module, name, lambda: [*before, gradient()], mesh.ndim, use)


def _see_local(
    module: nn.Module,
    name: str,
    gradients: Callable[[], Sequence[Placement]],
    axes: int,
    use: Callable[[Tensor], Tensor] | None,
) -> None:
    """Give `module` a class of its own whose attribute `name` is the local tensor of its parameter; the parameter
    itself while FSDP keeps it cut over more axes, as FSDP reads it by that attribute."""

    def local(self: nn.Module) -> Tensor | None:
        parameter = self._parameters[name]
        if not isinstance(parameter, DTensor) or parameter.device_mesh.ndim != axes:
            return parameter
        tensor = parameter.to_local(grad_placements=gradients())
        return tensor if use is None else use(tensor)

    module.__class__ = type(type(module).__name__, (type(module),), {name: property(local)})


def _channels(heads: Iterable[int], width: int) -> list[int]:
    return [channel for head in heads for channel in range(head * width, (head + 1) * width)]


def _selected(own: Tensor, dim: int, x: Tensor) -> Tensor:
    return x.index_select(dim, own.to(x.device))


def _select_channels(own: list[int], module: nn.Module, arguments: Any, x: Tensor) -> Tensor:
    return _selected(torch.tensor(own), -1, x)


def _cut_keys(region: Region, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a block's dropout is drawn by belongs to all positions, its input to this rank's stretch."""
    x, *rest = arguments
    if not region.sequence or not rest or rest[0] is None:
        return arguments
    return x, rest[0].narrow(1, region.rank * x.shape[1], x.shape[1])


class _Shares(AuxiliaryLosses):
    """A tap that asks for an auxiliary loss which all ranks compute alike, each with its share of the gradient."""

    def __init__(self, losses: AuxiliaryLosses, n: int) -> None:
        self._losses, self._n = losses, n

    def __call__(self, name: str, tensor: Tensor) -> None:
        self._losses(name, share(tensor, self._n))


def _enter_region(region: Region, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = arguments
    if rest and isinstance(rest[0], AuxiliaryLosses):
        rest[0] = _Shares(rest[0], region.n)
    return region.into(x), *rest


def _leave_region(region: Region, module: nn.Module, arguments: Any, part: Tensor) -> Tensor:
    return region.out_of(part)


def _begin_again(region: Region, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A head for a further token reads the whole last hidden states, of which all ranks add up the gradients."""
    x, *rest = arguments
    cut = region.begin(x)
    return (cut if region.sequence else share(x, region.n)), *rest


def _embedded(embed: nn.Embedding, region: Region, own: list[int], ids: Tensor) -> Tensor:
    """Each id is a row of one rank's part of the table; the others add zero."""
    region.settle(ids.shape[1])
    if not ids.is_cuda and ids.max() >= embed.num_embeddings:
        raise IndexError("an id is not in the table")
    here = (ids >= own[0]) & (ids <= own[-1])
    rows = F.embedding(torch.where(here, ids - own[0], 0), embed.weight) * here[..., None]
    return sum_before_parts(rows, region.group) if region.sequence else sum_of(rows, region.group)


def _whole_scores(region: Region, own: list[int], module: nn.Linear, arguments: Any, scores: Tensor) -> Tensor:
    """Where nothing is learned the scores of the whole vocabulary; in training each rank goes on with its own."""
    if torch.is_grad_enabled():
        return scores
    whole = scores.new_zeros((*scores.shape[:-1], module.out_features))
    whole[..., own[0] : own[-1] + 1] = scores
    dist.all_reduce(whole, group=region.group)
    return whole


class _VocabularyLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, first: int, group: ProcessGroup) -> tuple[Tensor, Tensor]:
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        most = scores.max(dim=-1).values
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        own = targets - first
        here = (own >= 0) & (own < logits.shape[-1])
        picked = scores.gather(-1, torch.where(here, own, 0)[:, None])[:, 0] * here
        sums = torch.stack(((scores - most[:, None]).exp().sum(dim=-1), picked))
        dist.all_reduce(sums, group=group)
        total = most + sums[0].log()
        ctx.save_for_backward(logits, own, total)
        return sums[1] - total, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, own, total = ctx.saved_tensors
        to_logprob, to_total = gradients
        softmax = (logits.to(total.dtype) - total[:, None]).exp_()
        onehot = torch.arange(logits.shape[-1], device=logits.device) == own[:, None]
        gradient = softmax * (to_total - to_logprob)[:, None] + onehot * to_logprob[:, None]
        return gradient.to(logits.dtype), None, None, None


def vocabulary_logprobs(
    group: ProcessGroup, first: int, logits: Float[Tensor, "N part"], targets: Int[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """log p(target) and log Σ exp(logits) over the whole vocabulary, of which each rank has the scores from its token
    `first` on: no rank ever has all scores of a position."""
    result: tuple[Tensor, Tensor] = _VocabularyLogprobs.apply(logits, targets, first, group)  # type: ignore[no-untyped-call]
    return result
