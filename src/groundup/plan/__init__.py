"""Plan: what a training run will cost, and how large it should be; before anything is spent."""
