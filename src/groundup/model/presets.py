"""Published model sizes by name."""

from groundup.model.settings import GELU, GroupedQuery, LayerNorm, LearnedPosition, ModelConfig


def _gpt2(n_layers: int, d_model: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50_257,
        context_length=1024,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        position=LearnedPosition(),
        norm=LayerNorm(),
        attention=GroupedQuery(bias=True),
        feedforward=GELU(),
        tied_embeddings=True,
    )


PRESETS: dict[str, ModelConfig] = {
    # Radford et al. 2019, table 2; heads from the published configurations. The parameter counts there are of an
    # earlier draft: those of the released weights are 124,439,808, 354,823,168, 774,030,080 and 1,557,611,200.
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
}
