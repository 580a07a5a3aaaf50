"""Why is it wrong? Other conventions are tried, and those that give what came are named.

`alternative` says how one is written down, `attention`, `convolution`, `recurrent`, `layers` and `anything` list them, `judging`
decides whether one matches, and `explanation` puts together what is found in the cases of a report.
"""

from refattn.testing.explaining.explanation import Explanation, Match, explain, explained

__all__ = ["Explanation", "Match", "explain", "explained"]
