"""What a function does, as a key: the same code with the same values in it has the same fingerprint in any process.

Looked into are bytecode, constants, defaults and what is closed over; in the same way the functions and values that it
names, and the methods of a class, of its own module and of every other that belongs to no installed distribution. What
is installed counts by module, name and version, and a module that is named as a whole by its source file. So who works
on an installed package that the function calls has to say what changes by a key.

Other caches of results hash a pickle (Hugging Face datasets with dill): that differs between processes, by which
strings happen to be one object, and takes a function of a module for its name alone.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Iterator
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from raycache.errors import InvalidInput

DIGEST_BYTES = 16
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis))
_DEPTH_MAX = 100


def fingerprint(call: Any, *values: Any) -> str:
    """Hexadecimal, 32 digits, of a function and of values beside it.

    Raises InvalidInput for what cannot be looked into: then a key has to be given.
    """
    digest = blake2b(digest_size=DIGEST_BYTES)
    digest.update(f"python {sys.version_info[0]}.{sys.version_info[1]}".encode())
    for piece in _Walk(call).pieces((call, values), 0):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


class _Walk:
    """One fingerprint: what was met before is not gone into again."""

    def __init__(self, call: Any) -> None:
        self._home = getattr(call, "__module__", None) or getattr(type(call), "__module__", "")
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []
        """So that no two things met have one id."""

    def pieces(self, value: Any, depth: int) -> Iterator[bytes]:
        """What makes up a value."""
        if depth > _DEPTH_MAX:
            raise InvalidInput(f"{type(value).__name__} is nested too deeply for a fingerprint; give a key")
        if isinstance(value, _PLAIN):
            yield f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
            return
        if id(value) in self._met:
            yield b"met %d" % self._met[id(value)]
            return
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        yield from self._inside(value, depth + 1)

    def _inside(self, value: Any, depth: int) -> Iterator[bytes]:
        if isinstance(value, CodeType):
            yield from self._code(value, depth)
        elif isinstance(value, FunctionType):
            yield from self._function(value, depth)
        elif isinstance(value, MethodType):
            yield from self._all((value.__func__, value.__self__), depth)
        elif isinstance(value, functools.partial):
            yield from self._all((value.func, value.args, value.keywords), depth)
        elif isinstance(value, ModuleType):
            yield f"module {value.__name__} {_version_of(value.__name__)}".encode()
            if self._is_own(value.__name__) and (file := getattr(value, "__file__", None)):
                yield Path(file).read_bytes()
        elif isinstance(value, type):
            yield from self._class(value, depth)
        elif isinstance(value, tuple | list | dict | set | frozenset):
            yield from self._several(value, depth)
        elif hasattr(value, "__wrapped__"):  # functools.lru_cache and its like
            yield from self.pieces(value.__wrapped__, depth)
        else:
            yield from self._object(value, depth)

    def _several(self, values: Any, depth: int) -> Iterator[bytes]:
        yield f"{type(values).__name__} {len(values)}".encode()
        if isinstance(values, dict):
            values = [(key, values[key]) for key in sorted(values, key=repr)]
        elif isinstance(values, set | frozenset):
            values = sorted(values, key=repr)
        yield from self._all(values, depth)

    def _all(self, values: Any, depth: int) -> Iterator[bytes]:
        for value in values:
            yield from self.pieces(value, depth)

    def _code(self, code: CodeType, depth: int) -> Iterator[bytes]:
        yield b"code " + code.co_code
        yield " ".join((code.co_name, *code.co_names, "|", *code.co_varnames, "|", *code.co_freevars)).encode()
        yield from self._all(code.co_consts, depth)

    def _function(self, function: FunctionType, depth: int) -> Iterator[bytes]:
        if not self._is_own(function.__module__):
            yield _imported(function)
            return
        yield from self._all((function.__code__, function.__defaults__, function.__kwdefaults__), depth)
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            yield name.encode()
            yield from self._all(_contents(cell), depth)
        for name in sorted(_names_in(function.__code__)):
            if name in function.__globals__:
                yield name.encode()
                yield from self.pieces(function.__globals__[name], depth)

    def _class(self, kind: type, depth: int) -> Iterator[bytes]:
        if not self._is_own(kind.__module__):
            yield _imported(kind)
            return
        yield f"class {kind.__qualname__}".encode()
        yield from self._all(kind.__bases__, depth)
        passed_over = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"}
        for name in sorted(set(vars(kind)) - passed_over):
            member = vars(kind)[name]
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if not name.startswith("__") or isinstance(member, FunctionType):
                yield name.encode()
                yield from self.pieces(member, depth)

    def _object(self, value: Any, depth: int) -> Iterator[bytes]:
        kind = type(value)
        if self._is_own(kind.__module__) and hasattr(value, "__dict__"):
            yield from self._all((kind, vars(value)), depth)
            return
        if hasattr(value, "__qualname__"):  # a function of C
            yield _imported(value)
            return
        try:
            yield b"pickle " + pickle.dumps(value, protocol=5)
        except Exception as error:  # whatever its class raises when it is pickled
            raise InvalidInput(
                f"what is computed depends on a {kind.__module__}.{kind.__qualname__}, of which nothing can be said; "
                f"give a key, and another one when results are to change ({error})"
            ) from error

    def _is_own(self, module: str | None) -> bool:
        """Whether what a module holds may change without a new version of anything."""
        top = (module or "").partition(".")[0]
        return module in (self._home, "__main__") or not (top in sys.stdlib_module_names or _version_of(top))


def _contents(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()  # nothing is in it yet


def _names_in(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names_in(constant)
    return found


def _imported(value: Any) -> bytes:
    module = getattr(value, "__module__", None) or ""
    return f"imported {module}.{value.__qualname__} {_version_of(module)}".encode()


@functools.lru_cache(maxsize=1024)
def _version_of(module: str) -> str:
    top = module.partition(".")[0]
    try:
        return version(_distributions()[top][0])
    except (KeyError, PackageNotFoundError):  # the standard library, or the user's own
        return ""


@functools.lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())
