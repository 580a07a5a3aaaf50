"""Where a token stands, added to what it is.

Attention by itself does not see the order of its keys. `sinusoidal_encoding` turns a number into sines and cosines of it;
`add_sinusoidal` adds those of a sequence's positions, `add_learned` a learned table, and each has a form for feature maps, in
which one part of the channels tells the row and the other the column.

`relative_logits_1d` and `relative_logits_2d` leave the tokens alone: they score each key by its distance from the query, to be
added before the softmax.
"""

from refattn.positional.learned import add_learned, add_learned_2d
from refattn.positional.relative import relative_logits_1d, relative_logits_2d
from refattn.positional.sinusoidal import add_sinusoidal, add_sinusoidal_2d, sinusoidal_encoding

__all__ = [
    "add_learned",
    "add_learned_2d",
    "add_sinusoidal",
    "add_sinusoidal_2d",
    "relative_logits_1d",
    "relative_logits_2d",
    "sinusoidal_encoding",
]
