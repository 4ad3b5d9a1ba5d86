"""`delayed`: calls that are written down, made into a graph by using one's result in another, and computed together."""

from __future__ import annotations

import hashlib
import itertools
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

from cluster.client.functions import label_of
from cluster.lazy.compute import compute, persist
from cluster.lazy.drawing import Drawing, visualize
from cluster.lazy.expression import Lazy, Node, find_nodes, replace_lazy
from cluster.wire.payload import dumps

__all__ = ["Delayed", "DelayedFunction", "delayed"]

_numbers = itertools.count()


class Delayed(Lazy):
    """A value that is computed when it is asked for; what is done with it is written down and delayed too.

    Attributes, methods, items and operators give a Delayed each. It has no truth value and no length, and only one that
    was made with `nout` can be unpacked.
    """

    __slots__ = ("_length",)

    _length: int | None

    def __init__(self, node: Node, length: int | None = None) -> None:
        # Attributes cannot be set on a Delayed in the usual way: that would change a value that nobody has made yet.
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_length", length)

    @property
    def key(self) -> str:
        """The name of the computation."""
        return self._node.key

    def compute(self, **options: Any) -> Any:
        """Compute the value on the current client's cluster and return it; takes the options of `Client.compute`."""
        return compute(self, **options)[0]

    def persist(self, **options: Any) -> Delayed:
        """Begin to compute the value, leave it on the cluster, and return a Delayed that stands on it."""
        kept: Delayed = persist(self, **options)[0]
        return kept

    def visualize(self, filename: str | None = None, *, rankdir: str = "TB") -> Drawing:
        """Draw the graph; see `cluster.visualize`."""
        return visualize(self, filename=filename, rankdir=rankdir)

    def __call__(self, *args: Any, **kwargs: Any) -> Delayed:
        return _call(_apply, (self, *args), kwargs, label=f"call-{self._node.label}")

    def __getattr__(self, name: str) -> Delayed:
        if name.startswith("_"):
            # What looks for special methods, or a notebook for a way to show this, is not to be told that there is one.
            raise AttributeError(f"a Delayed has no attribute {name!r}; take it in a function of your own")
        return DelayedAttribute(self, name)

    def __getitem__(self, item: Any) -> Delayed:
        return _call(operator.getitem, (self, item), label="getitem")

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(f"a Delayed cannot be changed ({name} = …): return a changed value from a delayed function")

    def __setitem__(self, item: Any, value: Any) -> None:
        raise TypeError("a Delayed cannot be changed: return a changed value from a delayed function")

    def __iter__(self) -> Iterator[Delayed]:
        if self._length is None:
            raise TypeError("a Delayed of unknown length cannot be iterated over; say delayed(function, nout=2)")
        return (self[index] for index in range(self._length))

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("a Delayed has no length; say delayed(function, nout=2)")
        return self._length

    def __bool__(self) -> bool:
        raise TypeError("a Delayed is neither true nor false before it is computed; decide inside a delayed function")

    def __hash__(self) -> int:
        return hash(self._node.key)

    def _standing_on(self, node: Node) -> Delayed:
        return Delayed(node, self._length)

    def __reduce__(self) -> tuple[Any, ...]:
        return Delayed, (self._node, self._length)

    def __repr__(self) -> str:
        return f"<Delayed {self._node.key}>"


class DelayedFunction(Delayed):
    """A function whose calls are delayed."""

    __slots__ = ("_nout", "_pure")

    _nout: int | None
    _pure: bool

    def __init__(self, node: Node, pure: bool, nout: int | None) -> None:
        super().__init__(node)
        object.__setattr__(self, "_pure", pure)
        object.__setattr__(self, "_nout", nout)

    def __call__(self, *args: Any, **kwargs: Any) -> Delayed:
        node = self._node
        return _call(node.args[0], args, kwargs, label=node.label, pure=self._pure, length=self._nout)

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        # A decorated function in a class is a method of its instances.
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        return DelayedFunction, (self._node, self._pure, self._nout)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The function's own text."""
        return getattr(self._node.args[0], "__doc__", None)

    @property
    def __wrapped__(self) -> Any:
        return self._node.args[0]


class DelayedAttribute(Delayed):
    """An attribute of a Delayed; calling it is one task and not two."""

    __slots__ = ("_name", "_object")

    _name: str
    _object: Delayed

    def __init__(self, owner: Delayed, name: str) -> None:
        super().__init__(_call(getattr, (owner, name), label=f"getattr-{name}")._node)
        object.__setattr__(self, "_object", owner)
        object.__setattr__(self, "_name", name)

    def __call__(self, *args: Any, **kwargs: Any) -> Delayed:
        return _call(_call_method, (self._object, self._name, *args), kwargs, label=self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return DelayedAttribute, (self._object, self._name)


def delayed(
    value: Any = None,
    *,
    name: str | None = None,
    pure: bool = False,
    nout: int | None = None,
    traverse: bool = True,
) -> Any:
    """Make the calls of a function delayed, or a value into a Delayed. Also a decorator.

    A Delayed among the arguments, at any depth of lists, tuples, sets, dicts and dataclasses, makes the call depend on
    it. `pure=True` names each call after its content, so that equal calls are computed once. `nout` is how many values
    the function returns, so that the result can be unpacked. `name` is what the tasks are called. With `traverse=False`
    a value that is not a function is not searched for Delayed.

    >>> from cluster import delayed
    >>> total = delayed(sum)([delayed(pow)(2, 3), delayed(pow)(2, 4)])
    >>> total.compute()  # doctest: +SKIP
    24
    """
    if value is None and (name or pure or nout is not None):
        return lambda function: delayed(function, name=name, pure=pure, nout=nout, traverse=traverse)
    if nout is not None and (isinstance(nout, bool) or not isinstance(nout, int) or nout < 0):
        raise ValueError(f"nout must be how many values are returned, as a whole number of at least 0, not {nout!r}")
    if isinstance(value, Delayed):
        return value
    if callable(value):
        label = name or label_of(value)
        return DelayedFunction(Node(f"{label}-{next(_numbers)}", label, None, (value,)), pure, nout)
    inputs = find_nodes([value]) if traverse else []
    label = name or type(value).__name__
    key = f"{label}-{next(_numbers)}"
    if inputs:
        return Delayed(Node(key, label, _same, (value,), inputs=inputs), nout)
    return Delayed(Node(key, label, None, (value,)), nout)


def _call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    label: str,
    pure: bool = False,
    length: int | None = None,
) -> Delayed:
    inputs = find_nodes((args, kwargs) if kwargs else args)
    key = f"{label}-{_content(function, args, kwargs) if pure else next(_numbers)}"
    return Delayed(Node(key, label, function, args, kwargs, inputs), length)


def _content(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> str:
    named = replace_lazy((args, sorted((kwargs or {}).items())), lambda lazy: ("delayed", lazy._node.key))
    digest = hashlib.blake2b(digest_size=16)
    for part in dumps((function, named), name="arguments").parts:
        digest.update(part)
    return digest.hexdigest()


def _same(value: Any) -> Any:
    return value


def _apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _call_method(owner: Any, method: str, /, *args: Any, **kwargs: Any) -> Any:
    return getattr(owner, method)(*args, **kwargs)


_OPERATORS: Final = (
    "abs", "neg", "pos", "invert", "add", "sub", "mul", "matmul", "floordiv", "truediv", "mod", "pow", "and_", "or_",
    "xor", "lshift", "rshift", "eq", "ge", "gt", "ne", "lt", "le",
)  # fmt: skip
_REFLECTED: Final = frozenset(
    {"add", "sub", "mul", "matmul", "floordiv", "truediv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"}
)


def _add_operators() -> None:
    for name in _OPERATORS:
        function, bare = getattr(operator, name), name.rstrip("_")
        setattr(Delayed, f"__{bare}__", _operator_method(function, name, reflected=False))
        if name in _REFLECTED:
            setattr(Delayed, f"__r{bare}__", _operator_method(function, name, reflected=True))


def _operator_method(function: Callable[..., Any], label: str, *, reflected: bool) -> Callable[..., Delayed]:
    def method(self: Delayed, *others: Any) -> Delayed:
        return _call(function, (*others, self) if reflected else (self, *others), label=label)

    return method


_add_operators()
