"""Finished models, written for other programs, read back and compared before they get their name."""
