"""Plan: what a training run will cost, and how large model and vocabulary should be; before anything is spent."""
