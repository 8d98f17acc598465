"""Pretrain: a model learns to continue the corpus."""
