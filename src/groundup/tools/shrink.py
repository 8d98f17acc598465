"""Shrink: a recipe made small enough for a few processes of one machine, with all that decides how work is split.

Kinds, ratios and whether a size divides over ranks stay as they are; numbers become the smallest of which that is true.
"""

import itertools
import math
from dataclasses import dataclass

from groundup.model.settings import ModelConfig
from groundup.optim.settings import Constant
from groundup.parallel.settings import AXES, Interleaved, ParallelSettings, ZeroBubble
from groundup.pretrain.settings import MultiToken, PretrainSettings
from groundup.settings import Table
from groundup.train.settings import NoGuard

MOST_RANKS = 8
STEPS = 5
LEFT_OUT_FIRST = ("replicate", "shard", "context", "pipeline", "tensor")


@dataclass(frozen=True)
class Trial:
    """A small training that many ranks and one process are to do alike."""

    model: ModelConfig
    settings: PretrainSettings
    parallel: ParallelSettings
    """With every axis set."""
    rows: int
    """Of the batch of all ranks."""

    @property
    def ranks(self) -> int:
        return self.parallel.fewest_ranks


def shrink(
    model: ModelConfig, settings: PretrainSettings, parallel: ParallelSettings, ranks: int
) -> tuple[Trial, list[str]]:
    """A training made small, and what of its layout over `ranks` had to be made smaller, in words.

    Args:
        model: with its vocabulary.

    Raises:
        SettingsError: axes whose product is not the number of ranks.
    """
    full = parallel.sizes(ranks) | {"expert": parallel.expert}
    small = _fewer_ranks(full)
    # An axis that was left out decides nothing.
    full = {axis: size if small[axis] > 1 else 1 for axis, size in full.items()}
    # Micro-batches are uneven, but in pipelines, which have none such.
    rows_of_rank, micro_batch_rows = (max(4, small["pipeline"]), 1) if small["pipeline"] > 1 else (3, 2)
    if parallel.exact:
        rows_of_rank, micro_batch_rows = 4, 2
    small_model = _small_model(model, parallel, full, small)
    small_settings = _small_settings(settings, model, small_model, micro_batch_rows)
    layout = parallel.model_copy(update=small | {"elastic": False})
    said = [
        f"{axis} {size} is tried as {small[axis]}"
        for axis, size in (parallel.sizes(ranks) | {"expert": parallel.expert}).items()
        if size != small[axis]
    ]
    rows = rows_of_rank * small["replicate"] * small["shard"]
    return Trial(small_model, small_settings, layout, rows), said


def _fewer_ranks(sizes: dict[str, int]) -> dict[str, int]:
    """At most `MOST_RANKS`: the largest axes become two, and where that is not enough, some are left out.

    >>> _fewer_ranks({"pipeline": 4, "replicate": 16, "shard": 8, "context": 1, "tensor": 2, "expert": 1})
    {'pipeline': 2, 'replicate': 1, 'shard': 2, 'context': 1, 'tensor': 2, 'expert': 1}
    """
    small = dict(sizes)
    while math.prod(small[axis] for axis in AXES) > MOST_RANKS:
        axis = max(LEFT_OUT_FIRST, key=lambda each: small[each])
        small[axis] = 2 if small[axis] > 2 else 1
    small["expert"] = math.gcd(sizes["expert"], small["replicate"] * small["shard"] * small["context"])
    return small


def _small_model(
    model: ModelConfig, parallel: ParallelSettings, full: dict[str, int], small: dict[str, int]
) -> ModelConfig:
    table = model.table()
    tensor = full["tensor"], small["tensor"]
    n_heads, n_kv_heads = _heads(model, *tensor)
    d_head = _head_width(model)
    d_model = n_heads * d_head if model.d_head is None else 4 * d_head
    stages = {axis: _stages(parallel, sizes["pipeline"]) for axis, sizes in (("full", full), ("small", small))}
    context_length = _context_length(model, full, small)
    table |= {
        "vocab_size": _alike(model.vocab_size or 0, *tensor, 80),
        "context_length": context_length,
        "d_model": d_model,
        "n_layers": _alike(model.n_layers, stages["full"], stages["small"], max(2, stages["small"])),
        "n_heads": n_heads,
        **({"n_kv_heads": n_kv_heads} if model.n_kv_heads else {}),
        **({"d_head": d_head} if model.d_head else {}),
        **({"d_ff": _alike(model.d_ff, *tensor, d_model)} if model.d_ff else {}),
        **({"d_embedding": d_model // 2} if model.d_embedding else {}),
        "attention": _small_attention(table["attention"], model.context_length, context_length),
        "feedforward": _small_feedforward(table["feedforward"], full["expert"], small["expert"]),
    }
    return ModelConfig.from_table(table)


def _alike(n: int, ranks: int, few: int, at_least: int) -> int:
    """The smallest number from `at_least` on that `few` ranks divide just if `ranks` divide `n`.

    >>> _alike(50257, 8, 2, at_least=80), _alike(50304, 8, 2, at_least=80)
    (81, 80)
    """
    return next(m for m in itertools.count(at_least) if (m % few == 0) == (n % ranks == 0))


def _heads(model: ModelConfig, ranks: int, few: int) -> tuple[int, int]:
    """Query heads and key/value heads: the fewest that are to `few` ranks what the model's are to `ranks`."""

    def facts(heads: int, groups: int, ranks: int) -> tuple[bool, ...]:
        divide = heads % ranks == 0, groups % ranks == 0
        enough = heads >= ranks, heads >= 2 * ranks, groups >= ranks
        return (*divide, *enough, groups == heads, groups == 1, heads == 1)

    wanted = facts(model.n_heads, model.kv_heads, ranks)
    possible = ((groups * each, groups) for groups in range(1, 33) for each in range(1, 33))
    return min((heads for heads in possible if facts(*heads, few) == wanted), default=(model.n_heads, model.kv_heads))


def _head_width(model: ModelConfig) -> int:
    """The narrowest head from eight channels on of which position can rotate its share."""
    fraction = getattr(model.position, "fraction", 1.0)
    widths = (width for width in range(8, 65, 2) if (turned := round(fraction * width)) and turned % 2 == 0)
    return next(widths, model.head_width)


def _stages(parallel: ParallelSettings, ranks: int) -> int:
    match parallel.schedule:
        case Interleaved(stages=stages):
            return ranks * stages if ranks > 1 else 1
        case ZeroBubble():
            return 2 * ranks if ranks > 1 else 1
        case _:
            return ranks


def _context_length(model: ModelConfig, full: dict[str, int], small: dict[str, int]) -> int:
    """Short rows, which the axes context and tensor divide as they do the recipe's."""

    def facts(length: int, sizes: dict[str, int]) -> tuple[bool, bool]:
        context, tensor = sizes["context"], sizes["tensor"]
        return length % (2 * context) == 0, length // context % tensor == 0

    wanted = facts(model.context_length, full)
    return next(length for length in itertools.count(24) if facts(length, small) == wanted)


def _small_attention(table: Table, length: int, few: int) -> Table:
    small = {"d_latent": 12, "d_query_latent": 10, "d_rotary": 4, "d_value": 6}
    if "window" in table:
        small["window"] = few // 3 if table["window"] < length else few
    return table | {name: value for name, value in small.items() if name in table}


def _small_feedforward(table: Table, ranks: int, few: int) -> Table:
    if table["kind"] != "experts":
        return table
    active = min(table["n_active"], 2)
    at_least = active + (table["n_experts"] > table["n_active"])
    return table | {
        "n_experts": _alike(table["n_experts"], ranks, few, max(few, at_least)),
        "n_active": active,
        "n_shared": min(table["n_shared"], 2),
    }


def _small_settings(
    settings: PretrainSettings, model: ModelConfig, small: ModelConfig, micro_batch_rows: int
) -> PretrainSettings:
    """Its loss, optimizer, clipping and recomputation, at the top of the learning rate from the first step on."""
    loss, base = settings.loss, settings.base_width
    if isinstance(loss, MultiToken):
        loss = loss.model_copy(update={"extra_tokens": min(loss.extra_tokens, 2)})
    return settings.model_copy(
        update={
            "steps": STEPS,
            "schedule": Constant(warmup_steps=0),
            "guard": NoGuard(),
            "micro_batch_rows": micro_batch_rows,
            "batch_ramp": None,
            "loss": loss,
            "base_width": None if base is None else max(1, round(base * small.d_model / model.d_model)),
        }
    )
