"""What is written about the package, and what writes it."""
