"""Optimizers, their parameter groups, and schedules of the learning rate."""
