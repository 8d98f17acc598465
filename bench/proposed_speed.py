"""How fast does `groundup new` think a size trains, and how fast does it train?

    python bench/proposed_speed.py RUN

Takes shards of a finished run. For each size of the ladder up to 768 wide: tokens a second as estimated from NumPy's
float32 matrix product, and as measured by the trial that `pretrain` makes before its first step, in both precisions.
"""

import argparse
from pathlib import Path

from groundup.artifacts import read_manifest
from groundup.model.settings import ModelConfig
from groundup.plan.hardware import this_machine
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.speed import tokens_per_second
from groundup.tools.new import LADDER
from groundup.train.assemble import prepare_process
from groundup.weights.load import find_device


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    prepare_process()
    vocab_size = read_manifest(arguments.run / "shards", "shards").statistics["vocab_size"]
    machine = this_machine()
    print(f"{machine.name}, {machine.peak_flops / 1e9:,.0f} GFLOP/s in NumPy's float32 product")
    print("width layers  estimated  " + "  ".join(f"{name:>9}" for name in ("float32", "bfloat16")) + "  estimate/best")
    for d_model, n_layers in [size for size in LADDER if size[0] <= 768]:
        model = ModelConfig(
            vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=d_model // 64,
            d_ff=-(-8 * d_model // 3 // 64) * 64,
        )  # fmt: skip
        estimate = machine.training_flops(d_model) / model.training_flops_per_token
        speeds = {}
        for name in ("float32", "bfloat16"):
            settings = PretrainSettings.from_table({"batch_tokens": 4096, "precision": name})
            speeds[name] = tokens_per_second(
                model, settings, arguments.run / "shards", find_device("cpu"), arguments.seconds
            )
        measured = "  ".join(f"{speeds[name]:9,.0f}" for name in ("float32", "bfloat16"))
        print(f"{d_model:5} {n_layers:6}  {estimate:9,.0f}  {measured}  {estimate / max(speeds.values()):.2f}")


if __name__ == "__main__":
    main()
