"""One idea a file: each a builder that makes the function of one kernel from operations and constants."""
