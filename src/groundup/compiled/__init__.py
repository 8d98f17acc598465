"""Loops compiled by numba: how, and those that are not the tokenizer's."""
