"""Model: a decoder-only Transformer made of named blocks, counted and initialised in one place each."""
