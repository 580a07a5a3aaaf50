"""Which kernels a call takes, and what of a device they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from refattn.view.table import Table
from refattn_numba.cuda import cache, driver
from refattn_numba.cuda.arrays import is_on_device, read
from refattn_numba.cuda.fragments import FLOAT8
from refattn_numba.cuda.libraries import library_of

if TYPE_CHECKING:
    from refattn_numba.cuda.kernel import Kernel

SHARED_BYTES = {"sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90a": 232_448}
"""Dynamic shared memory that a block may have, by architecture: CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability"."""

PAIRS = ("bias", "mask", "keep", "softcap")


class Explanation(NamedTuple):
    """One kernel of a call.

    Attributes
    ----------
    face : str
        What it is for.
    kernel, architecture : str
        Its name, and what it is compiled for.
    tile, warps : int
        Rows that a block makes, and the warps that do.
    registers : int
        Of a thread.
    shared_bytes : int
        Shared memory of a block.
    stack_bytes : int
        Local memory of a thread; 0 where all its numbers are in registers.
    """

    face: str
    kernel: str
    architecture: str
    tile: int
    warps: int
    registers: int
    shared_bytes: int
    stack_bytes: int


class Explanations(tuple[Explanation, ...]):
    """Kernels of a call, printed as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        table = Table("for", "kernel", "architecture", "tile", "warps", "registers", "shared bytes", "stack bytes")
        for row in self:
            table.row(*row)
        return str(table)


def is_available() -> bool:
    """Whether there is a device on which the kernels run, and a driver to launch them.

    Returns
    -------
    bool
        False too where a package is missing.
    """
    try:
        found = driver.current()
        return any(found.facts(device).capability >= driver.OLDEST for device in range(found.count()))
    except driver.CudaError:
        return False


def explain(query: Any, key: Any, value: Any, *, architecture: str | None = None, **options: Any) -> Explanations:
    """The kernels that `refattn_numba.scaled_dot_product_attention` takes for such a call, forward and backward.

    With ``lengths=`` those of `decode_attention`, or of `paged_attention` if keys and values are pages: where a cache is not cut into
    splits, the first alone. They are compiled if no file holds them; nothing is launched.

    Parameters
    ----------
    query, key, value : array
        On a device; or of any library in main memory, of a type that kernels take, where `architecture` is given.
    architecture : str or None, optional
        ``"sm_80"`` or ``"sm_90a"``; default: that of the device.
    **options
        As of the call.

    Returns
    -------
    tuple of Explanation
        Prints as a table.

    Raises
    ------
    ValueError
        Where no kernel takes such a call.
    """
    from refattn_numba.cuda import configurations, float8, hopper  # noqa: PLC0415  # which brings the kernels along

    architecture, shared = target(query, "query", architecture)
    if options.get("lengths") is not None:
        return _of_caches(query, value, architecture)
    dtype: Any = str(query.dtype).rpartition(".")[2]
    scale = options.get("scale")
    has_options = any(options.get(name) is not None for name in PAIRS) or not (scale is None or scale > 0)
    if dtype == FLOAT8:
        names = [*(name for name in PAIRS if options.get(name) is not None), *([float8.NOT_POSITIVE] if has_options else [])]
        kernels = float8.kernels(architecture, shared, query.shape[-1], value.shape[-1], names)
        return Explanations(explained(face, kernel, architecture) for face, kernel in kernels.items())
    found = []
    for face in _faces(options):
        if face == "forward" and _is_cut(query, key, options):
            found += _of_caches(query, value, architecture)
            continue
        sizes = query.shape[-1], value.shape[-1]
        kernel = configurations.choose(face, dtype, *sizes, has_options=has_options, shared_limit=shared)
        if face in hopper.FACES and architecture == hopper.ARCHITECTURE and not has_options:
            has_limits = bool(options.get("causal")) or options.get("window") not in {None, (None, None)}
            kernel = hopper.fitting(dtype, *sizes, has_limits=has_limits, shared_limit=shared, face=face) or kernel
        found.append(explained(face, kernel, architecture))
    return Explanations(found)


def target(x: Any, name: str, architecture: str | None) -> tuple[str, int]:
    """What kernels are compiled for, the device of an array or what is asked for, and the shared memory that a block may have there."""
    if architecture is None:
        if not is_on_device(x):
            raise ValueError(f"architecture is None, but must be one of {', '.join(SHARED_BYTES)} where {name} is in main memory")
        library = library_of(type(x))
        assert library is not None  # an array on a device is some library's
        facts = driver.current().facts(read(name, x, library).memory.device)
        return facts.architecture, facts.shared_bytes
    if architecture not in SHARED_BYTES:
        raise ValueError(f"architecture is {architecture!r}, but must be one of {', '.join(SHARED_BYTES)}")
    return architecture, SHARED_BYTES[architecture]


def explained(face: str, kernel: Kernel, architecture: str) -> Explanation:
    """A row of the table, for which the kernel is compiled if no file holds it."""
    cubin, warps = cache.cubin_of(kernel, architecture), kernel.threads // 32
    shared_bytes = kernel.shared_bytes + cubin.shared_bytes
    return Explanation(face, kernel.name, architecture, kernel.tile, warps, cubin.registers, shared_bytes, cubin.stack_bytes)


def _is_cut(query: Any, key: Any, options: Mapping[str, Any]) -> bool:
    """Whether keys are cut into splits for the queries."""
    from refattn_numba.cuda import decoding  # noqa: PLC0415  # which brings the kernels along

    return decoding.is_cut(
        group=query.shape[-3] // max(key.shape[-3], 1),
        query_len=query.shape[-2],
        key_len=key.shape[-2],
        has_pairs=any(options.get(name) is not None for name in PAIRS if name != "softcap"),
        has_limits=bool(options.get("causal")) or options.get("window") not in {None, (None, None)},
        is_aligned_right=options.get("align") == "lower_right",
    )


def _of_caches(query: Any, value: Any, architecture: str) -> Explanations:
    from refattn_numba.cuda import decode_configurations  # noqa: PLC0415  # which brings the kernels along

    dtype: Any = str(query.dtype).rpartition(".")[2]
    has_codes = str(value.dtype).endswith("int8")
    decode = decode_configurations.choose(dtype, query.shape[-1], value.shape[-1], has_codes=has_codes)
    kernels = {"decode": decode, "merge": decode_configurations.merging(dtype)}
    return Explanations(explained(face, kernel, architecture) for face, kernel in kernels.items())


def _faces(options: Mapping[str, Any]) -> list[Any]:
    extra = [face for face, name in (("sinks", "sinks"), ("sum_bias", "bias")) if options.get(name) is not None]
    return ["forward", "delta", "backward_keys", "backward_queries", *extra]
