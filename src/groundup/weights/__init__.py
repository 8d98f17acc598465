"""Model directories: read, written, extended; published formats and name maps."""
