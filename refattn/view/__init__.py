"""What can be looked at: tables that the command prints, and pages that show what a model attends to.

`attention_maps` runs any function and returns the weights and gates inside; `upsampled` brings one to the size of the image;
`page` writes all of them as one HTML file that needs nothing else.
"""

from refattn.view.maps import AttentionMap, attention_maps, upsampled
from refattn.view.page import page

__all__ = ["AttentionMap", "attention_maps", "page", "upsampled"]
