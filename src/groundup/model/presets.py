"""Published model sizes by name, one row each, with what was published about training them.

A family is the blocks that its sizes share, and where the rows come from. Where a paper and the released files
disagree, the row has what was trained, and says so.
"""

from dataclasses import dataclass
from typing import Any

from groundup.model.settings import (
    GELU,
    ALiBi,
    Experts,
    GroupedQuery,
    LanguageModel,
    LayerNorm,
    LearnedPosition,
    Llama3Scaling,
    ModelConfig,
    Parallel,
    ReLU,
    RMSNorm,
    Rotary,
    Sequential,
)


@dataclass(frozen=True)
class Preset:
    """A published size."""

    model: ModelConfig
    source: str
    """Where its numbers are from."""
    parameters: int | None
    """Exact, as published for the released weights or computed from their shapes; None where none were released."""
    batch_tokens: int | None
    """Tokens a step; None where it was not published."""
    learning_rate: float | None
    """At the top of its schedule; None where it was not published."""


@dataclass(frozen=True)
class Family:
    """What its sizes share."""

    blocks: dict[str, Any]
    """Fields of `ModelConfig`."""
    source: str


M = 1_000_000

GPT2 = Family(
    {
        "vocab_size": 50_257,
        "context_length": 1024,
        "position": LearnedPosition(),
        "norm": LayerNorm(),
        "attention": GroupedQuery(bias="all"),
        "feedforward": GELU(),
    },
    # Sizes and batch from the paper; heads and counts of the released weights: the paper counts an earlier draft.
    "Radford et al. 2019, table 2 and section 2.3; openai-community/gpt2*/config.json",
)
GPT3 = Family(
    # Every second layer there attends in bands (section 2.1). Here all see everything, with the same parameters.
    {**GPT2.blocks, "context_length": 2048},
    "Brown et al. 2020, arXiv:2005.14165, table 2.1",
)
OPT = Family(
    {**GPT3.blocks, "vocab_size": 50_272, "position": LearnedPosition(offset=2), "feedforward": ReLU()},
    # The counts from 6.7B on are computed from the shapes: none was found printed.
    "Zhang et al. 2022, arXiv:2205.01068, table 1; facebook/opt-*/config.json",
)
OPT_350M = Family(  # its norms come after the sums, its tokens have vectors of half the width
    {**OPT.blocks, "d_embedding": 512, "block": Sequential(norm="after")}, OPT.source
)
PYTHIA = Family(
    {
        "vocab_size": 50_304,  # padded, for the largest two further, to what their number of GPUs asked for
        "context_length": 2048,
        "position": Rotary(fraction=0.25),
        "norm": LayerNorm(),
        "attention": GroupedQuery(bias="all"),
        "feedforward": GELU(approximate="none"),
        "block": Parallel(),
        "head": LanguageModel(tied=False),
    },
    "Biderman et al. 2023, arXiv:2304.01373, table 1; EleutherAI/pythia/models/*.yml",
)
BLOOM = Family(
    {**GPT3.blocks, "vocab_size": 250_880, "embedding_norm": True, "position": ALiBi()},
    "BigScience 2022, arXiv:2211.05100; the scripts in bigscience-workshop/bigscience/train/tr11-176B-ml",
)
LLAMA = Family(
    {"vocab_size": 32_000, "context_length": 2048, "norm": RMSNorm(epsilon=1e-6), "head": LanguageModel(tied=False)},
    "Touvron et al. 2023, arXiv:2302.13971, table 2",
)
LLAMA_65B = Family({**LLAMA.blocks, "norm": RMSNorm()}, LLAMA.source)
LLAMA2 = Family(
    {**LLAMA.blocks, "context_length": 4096, "norm": RMSNorm()},
    "Touvron et al. 2023, arXiv:2307.09288, table 1 and section 2.2",
)
LLAMA2_70B = Family({**LLAMA2.blocks, "n_kv_heads": 8}, LLAMA2.source)
LLAMA3 = Family(
    {**LLAMA2.blocks, "vocab_size": 128_256, "context_length": 8192, "n_kv_heads": 8, "position": Rotary(base=5e5)},
    "Grattafiori et al. 2024, arXiv:2407.21783, table 3; meta-llama/llama-models/models/sku_list.py",
)
LLAMA31 = Family(
    {
        **LLAMA3.blocks,
        "context_length": 131_072,
        "position": Rotary(base=5e5, scaling=Llama3Scaling(factor=8.0)),
    },
    LLAMA3.source,
)
LLAMA32 = Family(
    {
        **LLAMA31.blocks,
        "position": Rotary(base=5e5, scaling=Llama3Scaling(factor=32.0)),
        "head": LanguageModel(),
    },
    "meta-llama/Llama-3.2-*/config.json",
)
SMOLLM2 = Family(
    {"vocab_size": 49_152, "context_length": 8192, "position": Rotary(base=1e5)},
    "Allal et al. 2025, arXiv:2502.02737; HuggingFaceTB/SmolLM2-*/config.json",
)
SMOLLM2_LARGE = Family({**SMOLLM2.blocks, "position": Rotary(base=1.3e5)}, SMOLLM2.source)
QWEN3 = Family(
    {
        "vocab_size": 151_936,
        "context_length": 40_960,
        "n_kv_heads": 8,
        "d_head": 128,
        "position": Rotary(base=1e6),
        "norm": RMSNorm(epsilon=1e-6),
        "attention": GroupedQuery(qk_norm="head"),
    },
    "Yang et al. 2025, arXiv:2505.09388, tables 1 and 2; Qwen/Qwen3-*/config.json",
)
QWEN3_UNTIED = Family({**QWEN3.blocks, "head": LanguageModel(tied=False)}, QWEN3.source)
QWEN3_EXPERTS = Family(
    {**QWEN3_UNTIED.blocks, "n_kv_heads": 4, "feedforward": Experts(n_experts=128, n_active=8)},
    QWEN3.source,
)


def _row(
    family: Family,
    parameters: int | None,
    batch_tokens: int | None,
    learning_rate: float | None,
    n_layers: int,
    d_model: int,
    n_heads: int,
    d_ff: int | None = None,
    **changes: Any,
) -> Preset:
    sizes = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "d_ff": d_ff}
    model = ModelConfig(**{**family.blocks, **sizes, **changes})
    return Preset(model, family.source, parameters, batch_tokens, learning_rate)


# fmt: off
PRESETS: dict[str, Preset] = {
    #                       family         parameters       tokens       rate     layers width   heads inner width
    "gpt2": _row(           GPT2,          124_439_808,     512 * 1024,  None,    12,  768,    12),
    "gpt2-medium": _row(    GPT2,          354_823_168,     512 * 1024,  None,    24,  1024,   16),
    "gpt2-large": _row(     GPT2,          774_030_080,     512 * 1024,  None,    36,  1280,   20),
    "gpt2-xl": _row(        GPT2,          1_557_611_200,   512 * 1024,  None,    48,  1600,   25),
    "gpt3-125m": _row(      GPT3,          None,            M // 2,      0.0006,  12,  768,    12),
    "gpt3-350m": _row(      GPT3,          None,            M // 2,      0.0003,  24,  1024,   16),
    "gpt3-760m": _row(      GPT3,          None,            M // 2,      0.00025, 24,  1536,   16),
    # printed with 24 heads of 128, wider than 2,048 and 1.5 B together; 16 give the printed 1.3 B, in table D.1 1,320 M
    "gpt3-1.3b": _row(      GPT3,          None,            M,           0.0002,  24,  2048,   16),
    "gpt3-2.7b": _row(      GPT3,          None,            M,           0.00016, 32,  2560,   32),
    "gpt3-6.7b": _row(      GPT3,          None,            2 * M,       0.00012, 32,  4096,   32),
    # printed 5,140 wide, which its 40 heads do not divide; 5,120 is 40 of 128, and the 12,850 M of table D.1
    "gpt3-13b": _row(       GPT3,          None,            2 * M,       0.0001,  40,  5120,   40),
    "gpt3-175b": _row(      GPT3,          None,            3_200_000,   6e-05,   96,  12_288, 96),
    "opt-125m": _row(       OPT,           125_239_296,     M // 2,      0.0006,  12,  768,    12),
    "opt-350m": _row(       OPT_350M,      331_196_416,     M // 2,      0.0003,  24,  1024,   16),
    "opt-1.3b": _row(       OPT,           1_315_758_080,   M,           0.0002,  24,  2048,   32),
    "opt-2.7b": _row(       OPT,           2_651_596_800,   M,           0.00016, 32,  2560,   32),
    "opt-6.7b": _row(       OPT,           6_658_473_984,   2 * M,       0.00012, 32,  4096,   32),
    "opt-13b": _row(        OPT,           12_853_473_280,  4 * M,       0.0001,  40,  5120,   40),
    "opt-30b": _row(        OPT,           29_974_540_288,  4 * M,       0.0001,  48,  7168,   56),
    "opt-66b": _row(        OPT,           65_719_701_504,  2 * M,       8e-05,   64,  9216,   72),
    "opt-175b": _row(       OPT,           174_604_468_224, 2 * M,       0.00012, 96,  12_288, 96),
    "pythia-70m": _row(     PYTHIA,        70_426_624,      1024 * 2048, 0.001,   6,   512,    8),
    "pythia-160m": _row(    PYTHIA,        162_322_944,     1024 * 2048, 0.0006,  12,  768,    12),
    "pythia-410m": _row(    PYTHIA,        405_334_016,     1024 * 2048, 0.0003,  24,  1024,   16),
    "pythia-1b": _row(      PYTHIA,        1_011_781_632,   1024 * 2048, 0.0003,  16,  2048,   8),
    "pythia-1.4b": _row(    PYTHIA,        1_414_647_808,   1024 * 2048, 0.0002,  24,  2048,   16),
    "pythia-2.8b": _row(    PYTHIA,        2_775_208_960,   1024 * 2048, 0.00016, 32,  2560,   32),
    "pythia-6.9b": _row(    PYTHIA,        6_857_302_016,   1024 * 2048, 0.00012, 32,  4096,   32,  vocab_size=50_432),
    # its model card prints 128 parameters more, unexplained
    "pythia-12b": _row(     PYTHIA,        11_846_072_320,  1024 * 2048, 0.00012, 36,  5120,   40,  vocab_size=50_688),
    "bloom-560m": _row(     BLOOM,         559_214_592,     256 * 2048,  0.0003,  24,  1024,   16),
    "bloom-1b1": _row(      BLOOM,         1_065_314_304,   256 * 2048,  0.00025, 24,  1536,   16),
    "bloom-1b7": _row(      BLOOM,         1_722_408_960,   512 * 2048,  0.0002,  24,  2048,   16),
    "bloom-3b": _row(       BLOOM,         3_002_557_440,   512 * 2048,  0.00016, 30,  2560,   32),
    "bloom-7b1": _row(      BLOOM,         7_069_016_064,   512 * 2048,  0.00012, 30,  4096,   32),
    "bloom-176b": _row(     BLOOM,         176_247_271_424, 2048 * 2048, 6e-05,   70,  14_336, 112),
    "llama-7b": _row(       LLAMA,         6_738_415_616,   4 * M,       0.0003,  32,  4096,   32,  11_008),
    "llama-13b": _row(      LLAMA,         13_015_864_320,  4 * M,       0.0003,  40,  5120,   40,  13_824),
    "llama-33b": _row(      LLAMA,         32_528_943_616,  4 * M,       0.00015, 60,  6656,   52,  17_920),
    "llama-65b": _row(      LLAMA_65B,     65_285_660_672,  4 * M,       0.00015, 80,  8192,   64,  22_016),
    "llama2-7b": _row(      LLAMA2,        6_738_415_616,   4 * M,       0.0003,  32,  4096,   32,  11_008),
    "llama2-13b": _row(     LLAMA2,        13_015_864_320,  4 * M,       0.0003,  40,  5120,   40,  13_824),
    "llama2-70b": _row(     LLAMA2_70B,    68_976_648_192,  4 * M,       0.00015, 80,  8192,   64,  28_672),
    "llama3-8b": _row(      LLAMA3,        8_030_261_248,   None,        0.0003,  32,  4096,   32,  14_336),
    "llama3-70b": _row(     LLAMA3,        70_553_706_496,  None,        0.00015, 80,  8192,   64,  28_672),
    "llama3.1-8b": _row(    LLAMA31,       8_030_261_248,   None,        0.0003,  32,  4096,   32,  14_336),
    "llama3.1-70b": _row(   LLAMA31,       70_553_706_496,  None,        0.00015, 80,  8192,   64,  28_672),
    # 4 M tokens at first, 8 M after 252 M, 16 M after 2.87 T (section 3.4.1)
    "llama3.1-405b": _row(  LLAMA31,       405_853_388_800, 16 * M,      8e-05,   126, 16_384, 128, 53_248),
    "llama3.2-1b": _row(    LLAMA32,       1_235_814_400,   None,        None,    16,  2048,   32,  8192),
    "llama3.2-3b": _row(    LLAMA32,       3_212_749_824,   None,        None,    28,  3072,   24,  8192),
    "smollm2-135m": _row(   SMOLLM2,       134_515_008,     None,        0.003,   30,  576,    9,   1536, n_kv_heads=3),
    "smollm2-360m": _row(   SMOLLM2,       361_821_120,     None,        0.003,   32,  960,    15,  2560, n_kv_heads=5),
    "smollm2-1.7b": _row(   SMOLLM2_LARGE, 1_711_376_384,   2 * M,       0.0005,  24,  2048,   32,  8192),
    "qwen3-0.6b": _row(     QWEN3,         596_049_920,     None,        None,    28,  1024,   16,  3072),
    "qwen3-1.7b": _row(     QWEN3,         1_720_574_976,   None,        None,    28,  2048,   16,  6144),
    "qwen3-4b": _row(       QWEN3,         4_022_468_096,   None,        None,    36,  2560,   32,  9728),
    "qwen3-8b": _row(       QWEN3_UNTIED,  8_190_735_360,   None,        None,    36,  4096,   32,  12_288),
    "qwen3-14b": _row(      QWEN3_UNTIED,  14_768_307_200,  None,        None,    40,  5120,   40,  17_408),
    "qwen3-32b": _row(      QWEN3_UNTIED,  32_762_123_264,  None,        None,    64,  5120,   64,  25_600),
    "qwen3-30b-a3b": _row(  QWEN3_EXPERTS, 30_532_122_624,  None,        None,    48,  2048,   32,  768),
    "qwen3-235b-a22b": _row(QWEN3_EXPERTS, 235_093_634_560, None,        None,    94,  4096,   64,  1536),
}
# fmt: on
