"""The same attention in plain loops, for reading, and for processors that have no row of their own (`instructions`)."""
