"""Arrays that end where readable memory ends: a kernel that reads or writes one element too many ends the process.

Run what is to be looked at in a process of its own. ``python -m tests.twins.guard_pages decode 0 20`` calls the decoding twins with the
random arguments of seeds 0 to 19, ``attention`` does so with softmax attention forward and backward, ``scans`` with linear attentions,
``deformable`` with deformable convolutions, ``convolutions`` with the direct method, ``depthwise`` with convolutions of channels on their
own, and ``outside`` reads one element too many.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

PAGE = mmap.PAGESIZE


def fenced(x, *, at_start=False):
    """A copy whose last byte is the last before a page that nobody may touch; or whose first is the first behind one."""
    x = np.asarray(x)
    pages = -(-max(x.nbytes, 1) // PAGE)
    whole = mmap.mmap(-1, (pages + 2) * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for fence in (first, first + (pages + 1) * PAGE):
        if protect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if at_start else (pages + 1) * PAGE - x.nbytes
    made = np.frombuffer(whole, np.uint8, x.nbytes, offset).view(x.dtype).reshape(x.shape)
    made[...] = x
    return made


class Fenced:
    """NumPy, but for new arrays, which end at a fence and begin with NaN."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        return fenced(np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0, dtype))

    def zeros(self, shape, dtype=float):
        return fenced(np.zeros(shape, dtype))

    def aligned(self, size, dtype):
        return self.empty(size, dtype)


def all_fenced(given, *, at_start=False):
    """The arrays among arguments, fenced."""
    return {name: fenced(x, at_start=at_start) if isinstance(x, np.ndarray) else x for name, x in given.items()}


def call_decode(seed):
    """One random call of each fence."""
    import refattn_numba
    from refattn_numba.cpu import cached
    from tests.twins import test_decode_fuzz

    cached.np = Fenced()
    name, given = test_decode_fuzz.draw(np.random.default_rng(seed))
    for at_start in (False, True):
        getattr(refattn_numba, name)(**all_fenced(given, at_start=at_start))


def call_attention(seed):
    """Forward and backward."""
    import refattn_numba
    from refattn.testing.precision import named_format
    from refattn_numba.cpu import attention, cached, couples
    from tests.twins import test_fuzz

    attention.np = cached.np = couples.np = Fenced()
    given = test_fuzz.draw(np.random.default_rng(seed), named_format(("float32", "bfloat16")[seed % 2]).numpy_dtype)
    for at_start in (False, True):
        y, pullback = refattn_numba.scaled_dot_product_attention.vjp(**all_fenced(given, at_start=at_start))
        pullback(fenced(np.ones_like(y), at_start=at_start))


def call_scans(seed):
    """Linear attentions and the delta rule, forward and backward."""
    import refattn_numba
    from refattn_numba.cpu import scan
    from tests.twins import test_scan_fuzz

    scan.np = Fenced()
    random = np.random.default_rng(seed)
    name = test_scan_fuzz.NAMES[seed % len(test_scan_fuzz.NAMES)]
    given = test_scan_fuzz.draw(random, name, "float32")
    for at_start in (False, True):
        y, pullback = getattr(refattn_numba, name).vjp(**all_fenced(given, at_start=at_start))
        pullback(*(fenced(np.ones_like(x), at_start=at_start) for x in y))


def call_deformable(seed):
    """Deformable convolutions, forward and backward, whose offsets may be anything."""
    import refattn_numba
    from refattn_numba.cpu import deformable, deformable_call
    from tests.twins import test_deformable

    deformable.np = deformable_call.np = Fenced()
    name = test_deformable.NAMES[seed % 2]
    given = test_deformable.draw(np.random.default_rng(seed), name, ("float32", "float64")[seed // 2 % 2], strange=0.7)
    for at_start in (False, True):
        y, pullback = getattr(refattn_numba, name).vjp(**all_fenced(given, at_start=at_start))
        pullback(fenced(np.ones_like(y), at_start=at_start))


def call_convolutions(seed):
    """The direct method, forward and backward, in both layouts."""
    import refattn_numba
    from refattn_numba.cpu.conv import direct, direct_pack, direct_weight, layouts, problem
    from tests.twins import test_conv_direct

    for module in (direct, direct_weight, layouts, problem):
        module.np = Fenced()
    direct_pack.aligned = direct_weight.aligned = layouts.aligned = Fenced().aligned
    name, given = test_conv_direct.draw(np.random.default_rng(seed))
    for at_start in (False, True):
        for x in (fenced(given["x"], at_start=at_start), np.moveaxis(fenced(np.moveaxis(given["x"], 1, -1), at_start=at_start), -1, 1)):
            fences = {**all_fenced(given, at_start=at_start), "x": x}
            y, pullback = getattr(refattn_numba, name).vjp(**fences, algorithm="direct")
            pullback(fenced(np.ones_like(y), at_start=at_start))


def call_depthwise(seed):
    """Depthwise convolutions and causal ones, forward and backward."""
    from refattn_numba.cpu.conv import causal, depthwise, problem
    from tests.twins import test_conv_depthwise as tests

    causal.np = depthwise.np = problem.np = Fenced()
    random = np.random.default_rng(seed)
    of, last = tests.drawn(random), tests.causal_call(random)
    x, weight, dy = tests.operands(of, random)
    causal.CACHES = random.choice([1, 1 << 60])
    for at_start in (False, True):
        given = [in_memory(a, of.channels_last, at_start) for a in (x, dy)]
        for face in tests.FACES:
            tests.face_of(depthwise.DEPTHWISE, of, face, given[0], fenced(weight, at_start=at_start), given[1])
        y, pullback = causal.convolve(**{n: in_memory(a, last[1] and n == "x", at_start) for n, a in last[0].items()})
        pullback(*(in_memory(np.ones_like(a), last[1], at_start) for a in y))


def in_memory(x, channels_last, at_start):
    """Fenced, with channels as axis 1 and where they are in memory."""
    return np.moveaxis(fenced(np.moveaxis(x, 1, -1), at_start=at_start), -1, 1) if channels_last else fenced(x, at_start=at_start)


def read_outside(_):
    """What the fence is for."""
    x = fenced(np.ones(5, np.float32))
    np.lib.stride_tricks.as_strided(x, (6,)).sum()


if __name__ == "__main__":
    from refattn_numba.cpu import call as calls
    from refattn_numba.cpu import threads

    calls.aligned = threads.aligned = Fenced().aligned
    call = {
        "decode": call_decode,
        "attention": call_attention,
        "scans": call_scans,
        "deformable": call_deformable,
        "convolutions": call_convolutions,
        "depthwise": call_depthwise,
        "outside": read_outside,
    }[sys.argv[1]]
    for number in range(*map(int, sys.argv[2:])):
        call(number)
        print(number, flush=True)
