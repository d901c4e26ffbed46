from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import re

import pytest

from raycache import errors
from raycache.errors import RaycacheError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RaycacheError)]
_LINE = re.compile(r"^ {4}(?P<tree>[│├└─ ]*)(?P<name>[A-Z]\w+) *(?P<builtin>[A-Z]\w+Error)?(?: \((?P<errno>E\w+)\))?")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_comes_back_from_another_process(kind, copied):
    error = kind("s3://bucket/a b\n: gone; refresh it")
    again = copied(error)
    assert type(again) is kind
    assert str(again) == str(error) == "s3://bucket/a b\n: gone; refresh it"
    assert again.errno == error.errno == kind.errno
    assert again.retryable == kind.retryable


@pytest.mark.parametrize("kind", CLASSES)
def test_has_an_errno_that_a_kernel_knows(kind):
    assert kind.errno in errno.errorcode
    assert os.strerror(kind.errno)


@pytest.mark.parametrize("kind", CLASSES)
def test_defines_no_constructor_of_its_own(kind):
    assert "__init__" not in vars(kind)
    assert "__new__" not in vars(kind)
    assert "__reduce__" not in vars(kind)


@pytest.mark.parametrize("kind", CLASSES)
def test_says_what_it_means(kind):
    assert kind.__doc__


def test_only_what_may_pass_is_retryable():
    assert {kind for kind in CLASSES if kind.retryable} == {
        errors.Unavailable,
        errors.SourceUnavailable,
        errors.WorkerLost,
        errors.ClusterUnavailable,
    }


def test_documented_tree_is_the_real_one():
    documented, parents = [], {}
    for line in errors.__doc__.splitlines():
        if match := _LINE.match(line):
            depth = len(match["tree"]) // 4
            parents[depth] = match["name"]
            kind = getattr(errors, match["name"])
            documented.append(match["name"])
            if depth:
                assert parents[depth - 1] in {base.__name__ for base in kind.__bases__}
            if match["builtin"]:
                assert match["builtin"] in {base.__name__ for base in kind.__bases__}
            if match["errno"]:
                assert kind.errno == getattr(errno, match["errno"])
    assert len(documented) == len(set(documented))
    assert set(documented) == {kind.__name__ for kind in CLASSES}


def test_classes_stand_in_the_order_of_the_documented_tree():
    written = re.findall(r"^class (\w+)", inspect.getsource(errors), re.MULTILINE)
    documented = [match["name"] for line in errors.__doc__.splitlines() if (match := _LINE.match(line))]
    assert written == documented


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidInput, ValueError),
        (errors.NotFound, FileNotFoundError),
        (errors.IsADirectory, IsADirectoryError),
        (errors.NotADirectory, NotADirectoryError),
        (errors.AccessDenied, PermissionError),
        (errors.ReadOnly, PermissionError),
        (errors.SourceUnavailable, OSError),
    ],
)
def test_is_caught_by_code_that_knows_only_builtins(kind, builtin):
    with pytest.raises(builtin):
        raise kind("x")
