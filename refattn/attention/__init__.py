"""Attention mechanisms, one family a folder."""
