"""Corpus: raw files in; clean, deduplicated documents out, every dropped one kept with its reason."""
