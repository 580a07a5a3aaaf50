"""The `mechanism` decorator: turns a rule into a function that knows its own derivative."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import numpy as np

from refattn._core import hook, tree
from refattn._core.arrays import Array, Grads, Integers, Pullback, as_array, is_real, working_dtype
from refattn._core.docstring import Fact, Facts, Leaf, parse_docstring, record_facts, walk, with_parameters_of
from refattn._core.options import ATOMS, is_scalar
from refattn._core.random import Random
from refattn._core.shapes import Unifier

P = ParamSpec("P")
Y = TypeVar("Y")
Y_co = TypeVar("Y_co", covariant=True)


@dataclass(frozen=True)
class Sample:
    """One small call, by argument name; which arguments have gradients is the docstring's to say."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadCall:
    """A call that must be refused, with the error and a pattern that its message must match."""

    name: str
    arguments: Mapping[str, Any]
    error: type[Exception]
    match: str


SILENT = functools.partial(np.errstate, all="ignore")
"""In bodies, NaN and infinity are numbers like others, whatever the caller has NumPy do about them: the result tells."""

MOST_KNOWN = 256
PLAIN = frozenset({bool, int, float, str})

Precision: TypeAlias = Callable[..., np.dtype[Any]]
Samples: TypeAlias = Callable[[Random], Iterator[Sample]]
BadCalls: TypeAlias = Callable[[Random], Iterator[BadCall]]


@dataclass(frozen=True)
class Spec:
    """Everything that the tests, the docs, the benchmarks and the command ask of a mechanism.

    Attributes
    ----------
    name, module : str
        Where it lives.
    signature : inspect.Signature
        Its parameters.
    samples, bad_calls, benchmark : callable
        Small calls that cover every parameter, calls that must be refused, one call of a realistic size.
    tags : frozenset of str
        What it belongs to besides its family.
    inert : frozenset of str
        Arguments without effect on any output, by mathematics.
    gradient_of : mechanism, dict of str to mechanism, or None
        The function whose derivative the pullback is, where that is not this one (straight-through estimators): for all
        arguments, or for those that are named.
    """

    name: str
    module: str
    signature: inspect.Signature
    samples: Samples
    rule: Callable[..., Any]
    like: Any = None
    bad_calls: BadCalls | None = None
    benchmark: Callable[[Random], Mapping[str, Any]] | None = None
    tags: frozenset[str] = frozenset()
    inert: frozenset[str] = frozenset()
    gradient_of: Any = None

    @property
    def family(self) -> str:
        """The folder that it lives in: ``dot_product``, ``convolution``, ``primitives``, ..."""
        return self.module.split(".")[-2]

    @functools.cached_property
    def hints(self) -> Mapping[str, Any]:
        """Type hints of the parameters and of what is returned, without the pullback."""
        own = typing.get_type_hints(self.rule)
        parameters = own if self.like is None else self.like.spec.hints if hasattr(self.like, "spec") else typing.get_type_hints(self.like)
        return {**{n: parameters[n] for n in self.signature.parameters}, "return": typing.get_args(own["return"])[0]}

    @functools.cached_property
    def output_names(self) -> tuple[str, ...]:
        """The fields of a named tuple, or ``output``."""
        return getattr(self.hints["return"], "_fields", ("output",))

    @functools.cached_property
    def facts(self) -> Facts:
        """What the docstring states; parsed on first use."""
        parameters = {n: self.hints[n] for n in self.signature.parameters}
        return parse_docstring(self.name, self.rule.__doc__ or "", parameters, self.output_names)

    @functools.cached_property
    def defaults(self) -> Mapping[str, Any]:
        """Default values of the options."""
        return {n: p.default for n, p in self.signature.parameters.items() if p.default is not inspect.Parameter.empty}

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name; TypeError where they are not those of the signature."""
        given = dict(zip(self._positional, args, strict=False))
        named = given.keys() | kwargs.keys()
        if len(named) == len(args) + len(kwargs) and self._required <= named <= self.signature.parameters.keys():
            return {**given, **kwargs}
        try:  # thirty times slower, and says what is wrong
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None

    @functools.cached_property
    def _positional(self) -> tuple[str, ...]:
        return tuple(n for n, p in self.signature.parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY)

    @functools.cached_property
    def _required(self) -> frozenset[str]:
        return frozenset(self.signature.parameters.keys() - self.defaults.keys())

    def accept(self, bound: Mapping[str, Any], *, nested: bool = False, precision: Precision | None = working_dtype) -> dict[str, Any]:
        """The arguments as a rule wants them: arrays in one precision, options as stated; or a ValueError or TypeError.

        Without a precision, arrays stay in the types in which they are stored. A call with the shapes, types and options of an
        earlier one, which was taken as it was, is not looked at again.
        """
        face = None if nested else _face_of(bound)
        if face is not None and (precision, face) in self._known_faces:
            return dict(bound)
        given = self._accept(bound, nested=nested, precision=precision)
        if face is not None and all(given[name] is x for name, x in bound.items()):
            if len(self._known_faces) >= MOST_KNOWN:
                self._known_faces.clear()
            self._known_faces.add((precision, face))
        return given

    def _accept(self, bound: Mapping[str, Any], *, nested: bool, precision: Precision | None) -> dict[str, Any]:
        stored = precision is None
        arrays = {
            a: _arrays(f"{self.name}: {a}", f, bound[a], optional=a in self.defaults, stored=stored)
            for a, f in self.facts.arguments.items()
            if a in bound
        }
        try:
            dtype = (
                None
                if precision is None
                else precision(*(x.dtype for _, leaf, x in self.facts.leaves(arrays) if leaf.is_real and not is_scalar(x)))
            )
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        given = {}
        for name, x in bound.items():
            if name in arrays:
                given[name] = arrays[name] if nested or dtype is None else _cast(arrays[name], dtype)
            else:
                given[name] = _plain(x)
                self.facts.options[name].check(f"{self.name}: {name}", given[name])
        self.sizes(given)
        return given

    def sizes(self, given: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The size of every dimension of a call (and of its outputs); raises `ShapeError` where two disagree."""
        options = {n: x for n in self.facts.options if type(x := given.get(n, self.defaults.get(n))) is int}
        found = [(path, leaf, x) for path, leaf, x in self.facts.leaves(given) if not is_scalar(x)]
        found += [t for name, x in (outputs or {}).items() for t in walk(name, self.facts.outputs[name], x)]
        if any(leaf.indexing for _, leaf, _ in found):
            return Unifier(self.name, found, options, self.facts.relations).run()
        shapes = (*((path, x.shape) for path, _, x in found), *options.items())
        known = self._known_sizes.get(shapes)
        if known is None:
            if len(self._known_sizes) >= MOST_KNOWN:
                self._known_sizes.clear()
            known = self._known_sizes[shapes] = Unifier(self.name, found, options, self.facts.relations).run()
        return dict(known)

    @functools.cached_property
    def _known_faces(self) -> set[Any]:
        return set()

    @functools.cached_property
    def _known_sizes(self) -> dict[Any, dict[str, Any]]:
        """Shapes that were found to fit: most calls repeat the ones before."""
        return {}


class Mechanism(Protocol[P, Y_co]):
    """A function whose `vjp` returns the output together with its pullback."""

    spec: Spec
    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Y_co: ...

    def vjp(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Y_co, Pullback]:
        """The output, and a function from the cotangents of the outputs to the gradients of the arguments."""
        ...


_REGISTRY: dict[str, Mechanism[..., Any]] = {}
_FASTER: ContextVar[Mapping[str, Any]] = ContextVar("refattn_faster", default=MappingProxyType({}))


def mechanisms(family: str | None = None, tag: str | None = None) -> tuple[Mechanism[..., Any], ...]:
    """All mechanisms of the package, in name order; imports every module of it.

    Parameters
    ----------
    family : str or None, optional
        Only those of this folder.
    tag : str or None, optional
        Only those with this tag.

    Returns
    -------
    tuple of mechanism
        The mechanisms; each has its facts in ``.spec``.
    """
    package = importlib.import_module("refattn")
    for module in pkgutil.walk_packages(package.__path__, "refattn."):
        if not module.name.endswith(("__main__", "pytest_plugin")):  # which need a command line and pytest
            importlib.import_module(module.name)
    found = (m for _, m in sorted(_REGISTRY.items()))
    return tuple(m for m in found if family in {None, m.spec.family} and (tag is None or tag in m.spec.tags))


def outputs(y: Any) -> tuple[Any, ...]:
    """The outputs of a call, one or several."""
    return y if isinstance(y, tuple) else (y,)


@contextmanager
def using(**faster: Any) -> Iterator[None]:
    """Within the block, composites call these in place of the mechanisms of the same names.

    Parameters
    ----------
    **faster : mechanism
        Functions with a ``.vjp``, by the names of the mechanisms that they replace.

    Raises
    ------
    ValueError
        For a name that no mechanism has.
    """
    unknown = faster.keys() - _REGISTRY.keys()  # what is imported already is known without a walk over the package's files
    if unknown and (unknown := unknown - {m.__name__ for m in mechanisms()}):
        raise ValueError(f"no mechanism is named {', '.join(sorted(unknown))}")
    token = _FASTER.set({**_FASTER.get(), **faster})
    try:
        yield
    finally:
        _FASTER.reset(token)


@contextmanager
def _using_none(name: str) -> Iterator[None]:
    """Within the block, the mechanism itself: a twin may call its own reference."""
    token = _FASTER.set({n: m for n, m in _FASTER.get().items() if n != name})
    try:
        yield
    finally:
        _FASTER.reset(token)


@typing.overload
def mechanism(
    *,
    samples: Samples,
    bad_calls: BadCalls | None = ...,
    benchmark: Callable[[Random], Mapping[str, Any]] | None = ...,
    tags: Collection[str] = ...,
    inert: Collection[str] = ...,
    gradient_of: Any = ...,
) -> Callable[[Callable[P, tuple[Y, Pullback]]], Mechanism[P, Y]]: ...


@typing.overload
def mechanism(
    *,
    samples: Samples,
    bad_calls: BadCalls | None = ...,
    benchmark: Callable[[Random], Mapping[str, Any]] | None = ...,
    tags: Collection[str] = ...,
    inert: Collection[str] = ...,
    gradient_of: Any = ...,
    like: Callable[P, Any],
) -> Callable[[Callable[..., tuple[Y, Pullback]]], Mechanism[P, Y]]: ...


def mechanism(
    *,
    samples: Samples,
    bad_calls: BadCalls | None = None,
    benchmark: Callable[[Random], Mapping[str, Any]] | None = None,
    tags: Collection[str] = (),
    inert: Collection[str] = (),
    gradient_of: Any = None,
    like: Any = None,
) -> Any:
    """Register a rule, hold it to what its docstring promises, and give it a `vjp`.

    With `like`, the rule takes ``*args, **kwargs`` and has that function's parameters; where its docstring has no
    Parameters section, it has that function's too.
    """

    def decorate(rule: Callable[P, tuple[Y, Pullback]]) -> Mechanism[P, Y]:
        if hasattr(like, "spec"):
            rule.__doc__ = with_parameters_of(rule.__doc__ or "", like.__doc__ or "")
        returned = str(rule.__annotations__["return"]).removeprefix("tuple[").removesuffix(", Pullback]")
        signature = inspect.signature(rule if like is None else like).replace(return_annotation=returned)
        spec = Spec(
            name=rule.__name__,
            module=rule.__module__,
            signature=signature,
            samples=samples,
            rule=rule,
            like=like,
            bad_calls=bad_calls,
            benchmark=benchmark,
            tags=frozenset(tags),
            inert=frozenset(inert),
            gradient_of=gradient_of,
        )
        made = cast("Mechanism[P, Y]", with_vjp(spec, rule))
        known = _REGISTRY.setdefault(spec.name, made)
        if known.spec.module != spec.module:
            raise ValueError(f"two mechanisms are named {spec.name!r}: {known.spec.module}, {spec.module}")
        _REGISTRY[spec.name] = made
        return made

    return decorate


def with_vjp(
    spec: Spec, rule: Callable[..., tuple[Any, Pullback]], *, precision: Precision | None = working_dtype, makes_new: bool = False
) -> Any:
    """The function that users call: it accepts arguments as `spec` states, and has `rule` compute in one precision.

    Without a precision, `rule` gets arrays in the types in which they are stored.

    `makes_new` promises that outputs and gradients share no memory with arguments or one another, and gradients none with what
    the pullback reads: they are copied less often. Outputs are not, where the pullback has ``reads_outputs = False``.
    """

    def run(args: tuple[Any, ...], kwargs: dict[str, Any], *, differentiate: bool) -> tuple[Any, Pullback]:
        fast = _FASTER.get().get(spec.name)
        if fast is not None:
            with _using_none(spec.name):
                return fast.vjp(*args, **kwargs)
        bound = spec.bind(args, kwargs)
        outer = hook.PATH.get()
        path = (*outer, spec.name)
        token = hook.PATH.set(path)
        try:
            with SILENT():
                try:
                    given = spec.accept(bound, nested=bool(outer), precision=precision)
                except (ValueError, TypeError) as error:
                    raise error.with_traceback(None) from None
                if not outer and hook.CURRENT.get() is not None:
                    given = {a: _hooked(path, "argument", a, x) if a in spec.facts.arguments else x for a, x in given.items()}
                y, pullback = rule(**given)
        except (ValueError, TypeError) as error:
            if outer:
                named = getattr(error, "__notes__", ()) or str(error).startswith(f"{spec.name}: ")
                for name in (outer[-1],) if named else (spec.name, outer[-1]):
                    error.add_note(f"in {name}")
            raise
        finally:
            hook.PATH.reset(token)
        made = tuple(hook.passed(path, "output", n, x) for n, x in zip(spec.output_names, outputs(y), strict=True))
        if not outer and (not makes_new or (differentiate and getattr(pullback, "reads_outputs", True))):
            made = tuple(np.array(x, subok=False) for x in made)
        given_back = type(y)(*made) if isinstance(y, tuple) else made[0]
        if not differentiate:
            return given_back, pullback
        return given_back, _checked_pullback(spec, given, made, pullback, path, copied=not makes_new)

    @functools.wraps(rule)
    def vjp(*args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        return run(args, kwargs, differentiate=True)

    @functools.wraps(rule)
    def call(*args: Any, **kwargs: Any) -> Any:
        return run(args, kwargs, differentiate=False)[0]

    for function in (vjp, call):
        cast(Any, function).__signature__ = spec.signature
    vjp.__qualname__ = f"{call.__qualname__}.vjp"  # so that it pickles
    made = cast(Any, call)
    made.vjp, made.spec = vjp, spec
    return made


def _checked_pullback(
    spec: Spec, given: Mapping[str, Any], made: tuple[Array, ...], pullback: Pullback, path: tuple[str, ...], *, copied: bool
) -> Pullback:
    """A pullback that refuses a cotangent of the wrong shape and takes an omitted one for zero."""
    named = tuple(f"d_{n}" for n in spec.output_names)
    kinds = [(x.shape, x.dtype) for x in made]
    wanted = {a for a, fact in spec.facts.arguments.items() if _is_wanted(fact, given.get(a))}

    def checked(*cotangents: Any, **by_name: Any) -> Grads:
        if len(cotangents) > len(named) or by_name.keys() - set(named[len(cotangents) :]):
            raise TypeError(f"{spec.name}: the pullback takes {', '.join(named)}; got {len(cotangents)} by position and {sorted(by_name)}")
        nested = bool(hook.PATH.get())
        filled = []
        for name, (shape, dtype), given_d in zip(
            named, kinds, [*cotangents, *(by_name.get(n) for n in named[len(cotangents) :])], strict=True
        ):
            d = np.zeros(shape, dtype) if given_d is None else given_d if nested else _real(f"{spec.name}: {name}", given_d)
            if np.shape(d) != shape:
                raise ValueError(f"{spec.name}: {name} has shape {np.shape(d)}, but {name[2:]} has {shape}")
            with SILENT():
                d = d if nested else d.astype(dtype, copy=False)
            filled.append(d if nested else hook.passed(path, "cotangent", name[2:], d))
        token = hook.PATH.set(path)
        try:
            with SILENT():
                grads = dict(pullback(*filled))
        finally:
            hook.PATH.reset(token)
        kept = {}
        for a in list(grads):
            g = grads.pop(a)  # so that no more than one large gradient is held twice
            if a in wanted:
                g = _hooked(path, "gradient", a, g)
                kept[a] = g if nested or not copied else tree.map_leaves(lambda leaf: np.array(leaf, subok=False), g)
        return kept

    return checked


def _is_wanted(fact: Fact, x: Any) -> bool:
    return x is not None and (not isinstance(fact, Leaf) or fact.has_gradient(x))


def _face_of(bound: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """All that decides whether a call is accepted; None where that is more than shapes, types and plain options."""
    face = []
    for name, x in bound.items():
        if type(x) is np.ndarray:
            if x.dtype.kind in "iuO":  # indices are looked at one by one
                return None
            face += [name, "array", x.dtype, x.shape]
        elif x is None or type(x) in PLAIN:
            face += [name, type(x), x]
        elif type(x) is tuple and all(part is None or type(part) in PLAIN for part in x):
            face += [name, "tuple", *map(type, x), x]
        else:
            return None
    return tuple(face)


def _hooked(path: tuple[str, ...], kind: hook.Kind, name: str, x: Any) -> Any:
    """Each leaf of an argument or gradient, as the hook leaves it."""
    if hook.CURRENT.get() is None:
        return x
    for leaf, value in list(tree.leaves(x, name)):
        if kind == "gradient" or not is_scalar(value):  # a sum over all axes is a NumPy scalar, and the gradient of an array
            x = tree.replace(x, leaf.partition(".")[2], hook.passed(path, kind, leaf, np.asanyarray(value)))
    return x


def _plain(x: Any) -> Any:
    return x.item() if isinstance(x, np.generic) else tuple(map(_plain, x)) if isinstance(x, list) else x


def _real(name: str, x: Any) -> Array:
    array = as_array(x, name)
    if not is_real(array.dtype):
        raise TypeError(f"{name} is {array.dtype}, but must be floating point")
    return array


def _arrays(path: str, fact: Fact, x: Any, *, optional: bool, stored: bool = False) -> Any:
    """The leaves of one argument as arrays of the stated kind; a record may be None where it is optional."""
    if isinstance(fact, Leaf):
        return _array(path, fact, x, stored)
    if x is None and optional:
        return None
    got = "None" if x is None else f"a {type(x).__name__}"
    if isinstance(fact, tuple):
        if not isinstance(x, (tuple, list)) or hasattr(x, "_fields"):
            raise TypeError(f"{path} is {got}, but must be a tuple")
        return tuple(_arrays(f"{path}.{i}", fact[0], part, optional=False, stored=stored) for i, part in enumerate(x))
    if not isinstance(x, fact):
        raise TypeError(f"{path} is {got}, but must be {fact.__name__}")
    absent = cast("Any", fact)._field_defaults
    return fact(*(_arrays(f"{path}.{n}", f, getattr(x, n), optional=n in absent, stored=stored) for n, f in record_facts(fact).items()))


def _array(name: str, leaf: Leaf, x: Any, stored: bool) -> Any:
    if x is None:
        if leaf.absent:
            return None
        raise TypeError(f"{name} is None, but must be an array")
    if leaf.kind == "float or" and is_scalar(x):
        if not ATOMS["float"](x):
            raise ValueError(f"{name} is {x}, but must be a number")
        return x if getattr(x, "dtype", None) == np.longdouble else float(x)
    nested = len(hook.PATH.get()) > 1
    array = x if nested and isinstance(x, np.ndarray) else as_array(x, name)  # an inner call keeps the arithmetic of the outer one
    if leaf.kind == "bool" and array.dtype != bool:
        raise TypeError(f"{name} is {array.dtype}, but must be bool, where True takes part")
    if leaf.kind == "int":
        return _integers(name, array)
    if leaf.kind == "int or real" and array.dtype.kind in "iu":
        return array if stored else array.astype(np.float64)
    if leaf.is_real and not is_real(array.dtype):
        raise TypeError(f"{name} is {array.dtype}, but must be {'integer or ' * (leaf.kind == 'int or real')}floating point")
    return array


def _integers(name: str, array: np.ndarray[Any, Any]) -> Integers:
    """In one width and with a sign: differences of unsigned numbers, or sums of short ones, would wrap around."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is {array.dtype}, but must be an integer array")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} runs to {array.max()}, which int64 does not hold")
    return array.astype(np.int64, copy=False)


def _cast(argument: Any, dtype: np.dtype[Any]) -> Any:
    """Real leaves in the working precision."""
    if isinstance(argument, tuple):
        return tree.map_leaves(lambda x: _cast(x, dtype), argument)
    return argument.astype(dtype, copy=False) if isinstance(argument, np.ndarray) and is_real(argument.dtype) else argument
