"""Beam builds a pipeline faster where it remembers what it has worked out.

While a pipeline is built, Beam reads the signatures of all of a DoFn's methods at each of several checks (113,000 calls
of `inspect.signature` for the four pipelines of a small run), and makes and runs an argument parser at each look at an
option (4,500 of them). On small data that is a good part of statistics, transform and evaluation: all steps of a run of
870 rows took 24.4 s of processor time with this and 36.1 s without, in one process that had imported everything
(`tests/benchmarks/beam_memo.py` times the statistics alone). What is remembered depends on its arguments alone, and
what a caller could change is a copy. Of Beam 2.77: `transforms/core.py`, `options/pipeline_options.py`.
"""

from __future__ import annotations

import copy
from types import FunctionType, MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core

Options = TypeVar("Options", bound=PipelineOptions)
Arguments = tuple[list[str], list[Any]]  # of a function: names, defaults

_read_arguments = core.get_function_args_defaults
_view_anew = PipelineOptions.view_as
_arguments: WeakKeyDictionary[FunctionType, dict[bool, Arguments]] = WeakKeyDictionary()
_parsed: dict[tuple[type[PipelineOptions], tuple[str, ...]], Any] = {}


def remember() -> None:
    """From now on, in this process; calling it again changes nothing."""
    _replace(function_arguments, view_as)


def forget() -> None:
    """Beam as it is without this module."""
    _replace(_read_arguments, _view_anew)
    _arguments.clear()
    _parsed.clear()


def _replace(arguments: Any, view: Any) -> None:
    setattr(core, "get_function_args_defaults", arguments)  # noqa: B010 - mypy takes no assignment to a function
    setattr(PipelineOptions, "view_as", view)  # noqa: B010


def function_arguments(function: Any) -> Arguments:
    """`apache_beam.transforms.core.get_function_args_defaults`, worked out once for a function.

    Args:
      function: a callable; of a method its first argument, which is bound, does not count.
    """
    bound = isinstance(function, MethodType)
    plain = function.__func__ if bound else function
    if not isinstance(plain, FunctionType):
        return _read_arguments(function)
    known = _arguments.setdefault(plain, {})
    if bound not in known:
        known[bound] = _read_arguments(function)
    names, defaults = known[bound]
    return list(names), list(defaults)


def view_as(self: PipelineOptions, cls: type[Options]) -> Options:
    """`PipelineOptions.view_as`, whose flags are parsed once for a class of options."""
    if self._flags is None or cls.__init__ is not PipelineOptions.__init__:
        return _view_anew(self, cls)  # no flags: those of the process, which may change
    key = (cls, tuple(self._flags))
    if key not in _parsed:
        _parsed[key] = cls(self._flags)._visible_options
    view = cls.__new__(cls)
    view.__dict__.update(_flags=self._flags, _visible_options=copy.deepcopy(_parsed[key]), _all_options={})
    for name in view._visible_option_list():
        if name not in self._all_options:
            self._all_options[name] = getattr(view._visible_options, name)
    view._all_options = self._all_options
    return view
