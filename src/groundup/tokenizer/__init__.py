"""Tokenizer: byte-level BPE, learned here or loaded from published vocabularies; lossless on every byte string."""
