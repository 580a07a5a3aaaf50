"""``conv2d.plan(weight, ...)``: a weight that is used many times is prepared once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from refattn._core import Pullback
from refattn_numba._tensors import is_tensor
from refattn_numba.cpu.conv.run import keeping
from refattn_numba.cuda.arrays import is_on_device


class Plan:
    """A convolution with fixed weights and options.

    What algorithms make of the weight (packed or transformed) is kept with it, for each precision and algorithm that calls need.
    The weight is copied: changing it later changes nothing here.
    """

    def __init__(self, convolution: Any, weight: Any, bias: Any, options: Mapping[str, Any]) -> None:
        for name, x in (("weight", weight), ("bias", bias)):
            if is_on_device(x):
                where = f"{convolution.__name__}.plan: {name} lies on a device"
                raise TypeError(f"{where}, but must be in main memory: call the function instead")
        copied = [x if x is None else x.detach().clone() if is_tensor(x) else np.array(x) for x in (weight, bias)]
        self._call, self._given = convolution, {"weight": copied[0], "bias": copied[1], **options}
        self._kept: dict[Any, Any] = {}

    def __call__(self, x: Any) -> Any:
        """The output, as of the function whose plan this is."""
        with keeping(self._kept):
            return self._call(x, **self._given)

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """The output and its pullback; the gradient of the input uses what is kept too."""
        with keeping(self._kept):
            y, pullback = self._call.vjp(x, **self._given)

        def kept_pullback(*cotangents: Any, **by_name: Any) -> Any:
            with keeping(self._kept):
                return pullback(*cotangents, **by_name)

        return y, kept_pullback


def planned(convolution: Any) -> Any:
    """The same function with a method ``plan(weight, bias=None, **options)``, which returns a `Plan`."""

    def plan(weight: Any, bias: Any = None, **options: Any) -> Plan:
        """Prepare a weight for many calls with the same options."""
        return Plan(convolution, weight, bias, options)

    cast("Any", convolution).plan = plan
    return convolution
