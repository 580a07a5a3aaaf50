"""What the command prints: tables of the catalogue, of one mechanism, and of a check."""
