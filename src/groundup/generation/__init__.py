"""Generation: ids in, ids out, one at a time; text around them."""
