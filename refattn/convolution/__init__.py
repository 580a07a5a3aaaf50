"""Convolution: a small filter slides over a sequence, an image or a volume."""
