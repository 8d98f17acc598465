"""World: the ranks of a training, their axes, and who they are to each other."""

from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from groundup.parallel.settings import AXES, ParallelSettings


@dataclass(frozen=True)
class World:
    """All ranks along the axes of `[parallel]`, seen from one of them.

    Parameters are cut over `mesh`, where context and shard are one axis, as ranks that share a row's positions have
    the same use for weights as ranks that have different rows; with `experts` over another view of the same ranks.
    """

    settings: ParallelSettings
    sizes: dict[str, int]
    """Size of each axis."""
    mesh: DeviceMesh
    """Axes pipeline, replicate, shard (shard × context), tensor."""
    axes: DeviceMesh
    """Axes pipeline, replicate, shard, context, tensor."""
    data: ProcessGroup
    """The ranks whose gradients are added up: replicate × shard × context."""
    experts: DeviceMesh | None
    """Axes pipeline, data (what is left of it), expert, tensor; None without experts' ranks."""
    device: torch.device
    dtype: torch.dtype
    """Of weights and activations in the passes."""
    micro_batch_rows: int = 1
    """Most rows that go through the model at once."""

    @classmethod
    def of(
        cls,
        settings: ParallelSettings,
        ranks: int,
        device: torch.device,
        dtype: torch.dtype,
        micro_batch_rows: int = 1,
    ) -> "World":
        """Of the process group that this process has joined.

        Raises:
            SettingsError: sizes whose product is not the number of ranks.
        """
        sizes = settings.sizes(ranks)
        pipeline, replicate, shard, context, tensor = (sizes[axis] for axis in AXES)

        def view(shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
            return init_device_mesh(device.type, shape, mesh_dim_names=names)

        axes = view((pipeline, replicate, shard, context, tensor), AXES)
        data = axes["replicate", "shard", "context"]._flatten("data")
        mesh = view((pipeline, replicate, shard * context, tensor), ("pipeline", "replicate", "shard", "tensor"))
        experts = None
        if settings.expert > 1:
            each = settings.expert
            shape = (pipeline, replicate * shard * context // each, each, tensor)
            experts = view(shape, ("pipeline", "data", "expert", "tensor"))
        return cls(settings, sizes, mesh, axes, data.get_group(), experts, device, dtype, micro_batch_rows)

    def group(self, axis: str) -> ProcessGroup:
        """The ranks that differ from this one along `axis`."""
        return self.axes.get_group(axis)

    def coordinate(self, axis: str) -> int:
        """This rank's number along `axis`."""
        return self.axes.get_local_rank(axis)

    @property
    def shares_rows_alone(self) -> bool:
        """Whether each rank computes whole models on rows of its own."""
        return self.sizes["pipeline"] == self.sizes["context"] == self.sizes["tensor"] == self.settings.expert == 1

    @property
    def row_ranks(self) -> int:
        """Among how many the rows of a batch are shared out."""
        return self.sizes["replicate"] * self.sizes["shard"]

    @property
    def row_rank(self) -> int:
        """Number of this rank among them."""
        return self.coordinate("replicate") * self.sizes["shard"] + self.coordinate("shard")
