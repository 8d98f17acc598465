"""The compiled twins of the plain tokenizer: nothing here is needed to understand it."""
