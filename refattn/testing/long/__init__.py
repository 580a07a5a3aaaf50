"""What checks of millions of tokens are made of: chosen rows, parts of one head each, long sums with their errors, and laws."""
