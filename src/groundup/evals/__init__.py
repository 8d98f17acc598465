"""Evals: how good a model is, with the error of the number."""
