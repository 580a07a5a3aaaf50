"""Times of convolutions on a device beside PyTorch's: the shapes of ResNet-50 and one of MobileNet, in bfloat16 with channels last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import refattn_numba
from benchmarks.gpu_timing import Call, distance, is_right, medians
from benchmarks.tables import Rows, aligned

SECONDS = 0.25
"""For each contender, of which there are four a shape."""


class ConvShape(NamedTuple):
    """One layer.

    Attributes
    ----------
    c_in, c_out, size : int
        Channels, and height and width of x.
    kernel, stride : int
        Along both axes; padding keeps the size where the stride is 1.
    groups, batch : int
        Groups of channels, and examples.
    """

    c_in: int
    c_out: int
    size: int
    kernel: int
    stride: int = 1
    groups: int = 1
    batch: int = 64

    @property
    def padding(self) -> int:
        """On each side."""
        return self.kernel // 2

    @property
    def out(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def operations(self) -> float:
        """Floating-point operations of the forward pass."""
        return 2.0 * self.batch * self.out**2 * self.c_out * self.c_in // self.groups * self.kernel**2

    @property
    def moved(self) -> float:
        """Bytes of x, the weight and the output, each once."""
        numbers = self.batch * (self.c_in * self.size**2 + self.c_out * self.out**2)
        return 2.0 * (numbers + self.c_out * self.c_in // self.groups * self.kernel**2)

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        kind = " depthwise" if self.groups == self.c_in else ""
        return f"{self.kernel}x{self.kernel}{stride}{kind}, {self.c_in} to {self.c_out}, {self.size}x{self.size}"


SHAPES = (
    ConvShape(3, 64, 224, 7, 2),
    ConvShape(64, 64, 56, 3),
    ConvShape(64, 256, 56, 1),
    ConvShape(256, 64, 56, 1),
    ConvShape(128, 128, 56, 3, 2),
    ConvShape(128, 128, 28, 3),
    ConvShape(256, 256, 14, 3),
    ConvShape(1024, 256, 14, 1),
    ConvShape(512, 512, 7, 3),
    ConvShape(512, 2048, 7, 1),
    ConvShape(240, 240, 28, 3, groups=240),
)


def convolutions(torch: Any) -> dict[str, Any]:
    """Times of ours and of PyTorch's, forward and backward, and how far ours is from PyTorch's results."""
    found = {str(shape): _layer(torch, shape) for shape in SHAPES}
    return {"layers": found, "ok": all(layer["ok"] for layer in found.values())}


def _layer(torch: Any, shape: ConvShape) -> dict[str, Any]:
    torch.manual_seed(0)
    last = {"memory_format": torch.channels_last}
    of_x, of_w = (shape.batch, shape.c_in, shape.size, shape.size), (shape.c_out, shape.c_in // shape.groups, shape.kernel, shape.kernel)
    x, w = (torch.randn(of, device=DEVICE, dtype=torch.bfloat16).to(**last) for of in (of_x, of_w))
    options: dict[str, Any] = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups}
    leaves = [a.detach().clone(**last).requires_grad_() for a in (x, w)]
    output = torch.nn.functional.conv2d(*leaves, **options)
    d = torch.randn_like(output)
    ours, pullback = refattn_numba.conv2d.vjp(x, w, **options)
    forward: dict[str, Call] = {
        "ours": lambda: refattn_numba.conv2d(x, w, **options),
        "torch": lambda: torch.nn.functional.conv2d(x, w, **options),
    }
    backward: dict[str, Call] = {
        "ours": lambda: pullback(d),
        "torch": lambda: torch.autograd.grad(output, leaves, d, retain_graph=True),
    }
    got, wanted = pullback(d), backward["torch"]()
    pairs = {"output": (ours, output.detach()), "x": (got["x"], wanted[0]), "weight": (got["weight"], wanted[1])}
    errors = {name: distance(*pair) for name, pair in pairs.items()}
    return {
        "shape": shape._asdict(),
        "operations": shape.operations,
        "bytes": shape.moved,
        "forward": medians(torch, forward, seconds=SECONDS),
        "backward": medians(torch, backward, seconds=SECONDS),
        "errors": errors,
        "ok": is_right(errors, "bfloat16"),
    }


DEVICE = "cuda"


def table(row: Mapping[str, Any], limits: Mapping[str, Any], which: str) -> str:
    """Milliseconds, how many times PyTorch's are ours, and which share of the card's limit ours reach.

    The limit is the longer of two times: that of moving all bytes as fast as a copy does, and that of multiplying as fast as a product of
    large matrices. The backward pass does twice the work.
    """
    head: list[str] = [f"convolution, {which}, ms", "ours", "torch", "torch over ours", "share of the limit", "right"]
    body: list[list[str]] = []
    for name, layer in row.get("layers", {}).items():
        times = {who: layer[which].get(who, {}).get("ms") for who in ("ours", "torch")}
        share = _share(layer, limits, times["ours"], 2 if which == "backward" else 1)
        ratio = f"{times['torch'] / times['ours']:.2f}" if all(times.values()) else "-"
        body.append([name, *(f"{t:.3f}" if t else "-" for t in times.values()), ratio, share, "yes" if layer["ok"] else "NO"])
    made: Rows = [head, *body]
    return aligned(made) if body else ""


def _share(layer: Mapping[str, Any], limits: Mapping[str, Any], ms: float | None, passes: int) -> str:
    if not ms or "copy_tb_per_s" not in limits:
        return "-"
    least = max(layer["bytes"] / limits["copy_tb_per_s"] / 1e9, layer["operations"] / limits["matmul_tflops"] / 1e9)
    return f"{100 * passes * least / ms:.0f} %"
