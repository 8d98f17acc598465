"""Norm: vectors brought to a common length."""

from torch import nn

from groundup.model.settings import LayerNorm, Norm, RMSNorm


def make_norm(settings: Norm, width: int) -> nn.Module:
    match settings:
        case LayerNorm(epsilon=epsilon, bias=bias):
            return nn.LayerNorm(width, eps=epsilon, bias=bias)
        case RMSNorm(epsilon=epsilon):
            return nn.RMSNorm(width, eps=epsilon)
