"""Latent attention: keys and values made from one small vector a token.

B batch, T time, D width, H query heads, K head width, L latent width, R rotary width, W value width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groundup.model.attention import Attend, Causal, heads_of
from groundup.model.dropout import drop_for
from groundup.model.norm import make_norm
from groundup.model.position import PositionTerms, terms_at
from groundup.model.settings import Latent, ModelConfig


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2 2024, arXiv:2405.04434, section 2.1, eq. 9–19).

    A token's keys and values are linear in one latent vector c: k = Uc, v = Wc. Each head's keys and values are written
    out, unless `attend.wants_latents`, as a cache does. Then use is made of q·Uc = (Uᵀq)·c and Σ p Wc = W Σ p c: the
    queries are brought to the latent vectors, which serve all heads as their one key and value. Fewer channels are
    cached, more are multiplied. `key` and `value` are then read as matrices: whoever wraps them has to offer a whole
    `weight`. A head's key has K + R channels.
    """

    TP = {"query": "column", "key": "column", "value": "column", "out": "row"}

    def __init__(self, config: ModelConfig, settings: Latent, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.dropout, n_heads = config, layer, settings.dropout, config.n_heads
        self.first_head = 0
        """As in `GroupedQueryAttention`."""
        self.d_head, self.d_rotary = config.head_width, settings.d_rotary
        self.d_value = settings.d_value or self.d_head
        self.scale = (self.d_head + self.d_rotary) ** -0.5
        self.query_latent: nn.Module = nn.Identity()
        self.query_latent_norm: nn.Module = nn.Identity()
        if settings.d_query_latent is not None:
            self.query_latent = nn.Linear(config.d_model, settings.d_query_latent, bias=False)
            self.query_latent_norm = make_norm(config.norm, settings.d_query_latent)
        width = settings.d_query_latent or config.d_model
        self.query = nn.Linear(width, n_heads * (self.d_head + self.d_rotary), bias=False)
        self.latent = nn.Linear(config.d_model, settings.d_latent, bias=False)
        self.latent_norm = make_norm(config.norm, settings.d_latent)
        self.rotary_key = nn.Linear(config.d_model, self.d_rotary, bias=False)
        self.key = nn.Linear(settings.d_latent, n_heads * self.d_head, bias=False)
        self.value = nn.Linear(settings.d_latent, n_heads * self.d_value, bias=False)
        self.out = nn.Linear(n_heads * self.d_value, config.d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "B T D"], terms: PositionTerms | None = None, attend: Attend | None = None
    ) -> Float[Tensor, "B T D"]:
        """Arguments are those of `GroupedQueryAttention`."""
        terms = terms_at(self.config, x) if terms is None else terms
        attend = Causal() if attend is None else attend
        q = self.query(self.query_latent_norm(self.query_latent(x)))
        q = heads_of(q, self.d_head + self.d_rotary)  # (B, H, T, K + R)
        q, q_rotary = q.split((self.d_head, self.d_rotary), dim=-1)
        latent = self.latent_norm(self.latent(x))  # (B, T, L)
        k_rotary = terms.rotate(self.rotary_key(x)[:, None])  # (B, 1, T, R)
        by_latents = getattr(attend, "wants_latents", False)
        if by_latents:
            q = q @ self.key.weight.unflatten(0, (-1, self.d_head))  # (B, H, T, L)
            k, v = torch.cat((latent[:, None], k_rotary), dim=-1), latent[:, None]
        else:
            k = torch.cat((heads_of(self.key(latent), self.d_head), k_rotary.expand_as(q_rotary)), dim=-1)
            v = heads_of(self.value(latent), self.d_value)
        read = attend(
            torch.cat((q, terms.rotate(q_rotary)), dim=-1),
            k,
            v,
            layer=self.layer,
            window=None,
            slopes=None,
            scale=self.scale,
            soft_cap=None,
            dropout=drop_for(self.dropout, terms.keys, x, self.first_head, q.shape[1]) if self.training else None,
        )
        if by_latents:
            read = read @ self.value.weight.unflatten(0, (-1, self.d_value)).transpose(-1, -2)  # (B, H, T, W)
        output: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return output
