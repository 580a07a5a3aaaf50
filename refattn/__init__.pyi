from refattn import masks as masks
from refattn import testing as testing
from refattn._core.hook import Result as Result
from refattn._core.hook import hooked as hooked
from refattn._core.mechanism import BadCall as BadCall
from refattn._core.mechanism import Mechanism as Mechanism
from refattn._core.mechanism import Sample as Sample
from refattn._core.mechanism import mechanisms as mechanisms
from refattn._core.mechanism import using as using
from refattn._core.shapes import ShapeError as ShapeError
from refattn.attention.dot_product import scaled_dot_product_attention as scaled_dot_product_attention
from refattn.attention.dot_product import scaled_dot_product_attention_with_lse as scaled_dot_product_attention_with_lse
from refattn.attention.dot_product import scaled_dot_product_attention_with_weights as scaled_dot_product_attention_with_weights
from refattn.primitives import dropout as dropout
from refattn.primitives import linear as linear
from refattn.primitives import log_softmax as log_softmax
from refattn.primitives import logsumexp as logsumexp
from refattn.primitives import masked_softmax as masked_softmax
from refattn.primitives import scaled as scaled
from refattn.primitives import softcap as softcap
from refattn.primitives import softmax as softmax

__version__: str
