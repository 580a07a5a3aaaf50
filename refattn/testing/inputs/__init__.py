"""Inputs under which a wrong kernel cannot pass, one kind of operation a file."""
