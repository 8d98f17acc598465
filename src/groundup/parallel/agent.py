"""stub"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def _rank(function: Any, arguments: Any, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    try:
        function(*arguments, torch.device("cpu"), ranks)
    finally:
        dist.destroy_process_group()


def run_ranks(function: Any, arguments: Any, ranks: int, settings: Any, progress: Any = None, say: Any = None) -> None:
    config = LaunchConfig(
        1,
        1,
        ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="x",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
        local_addr="127.0.0.1",
    )
    elastic_launch(config, _rank)(function, arguments, ranks)
