"""What Beam is spared: it gets the same signatures and the same options as without."""

import contextlib
import inspect
import sys
from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions, StandardOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import core
from apache_beam.transforms.userstate import BagStateSpec, is_stateful_dofn

from components import beam_memo

READ_ARGUMENTS, VIEW_ANEW = core.get_function_args_defaults, PipelineOptions.view_as
FLAGS = ["--runner=DirectRunner", "--direct_num_workers=3", "--experiments=a", "--experiments=b", "--unknown=1"]


@pytest.fixture
def remembering() -> Iterator[None]:
    beam_memo.remember()
    yield
    beam_memo.forget()


def outcome(read, function) -> object:
    try:
        return read(function)
    except (TypeError, ValueError) as error:
        return type(error)


def callables() -> list:
    """Of Beam's and the product's DoFns: functions, classes, and their methods, bound and not."""
    import components.evaluation.extract
    import components.examples.ingest  # noqa: F401

    found = {}
    for name in ("apache_beam.transforms.core", "apache_beam.transforms.util", "components."):
        for module in [m for n, m in list(sys.modules.items()) if n.startswith(name) and m is not None]:
            for thing in list(vars(module).values()):
                if callable(thing):
                    found[id(thing)] = thing
                if inspect.isclass(thing) and issubclass(thing, beam.DoFn):
                    with contextlib.suppress(TypeError):  # one that wants arguments has its functions all the same
                        found |= {id(member): member for _, member in inspect.getmembers(thing(), callable)}
                    found |= {id(member): member for _, member in inspect.getmembers(thing, callable)}
    return list(found.values())


def test_arguments_are_those_that_beam_reads_whatever_is_asked_first():
    all_callables = callables()
    assert sum(inspect.ismethod(one) for one in all_callables) > 50
    assert sum(inspect.isfunction(one) for one in all_callables) > 200
    for order in (all_callables, reversed(all_callables)):
        beam_memo.forget()
        for function in order:
            expected = outcome(READ_ARGUMENTS, function)
            for _ in range(2):
                assert outcome(beam_memo.function_arguments, function) == expected, function


def test_what_a_caller_changes_is_a_copy():
    def process(self, element, side="x", *, key): ...

    names, defaults = beam_memo.function_arguments(process)
    names.append("more")
    defaults.clear()
    assert beam_memo.function_arguments(process) == (["self", "element", "side"], ["x"]) == READ_ARGUMENTS(process)


@pytest.mark.parametrize("flags", [FLAGS, ["--streaming"], [], None])
def test_options_read_the_same_in_every_class_of_options(flags: list[str] | None):
    classes = PipelineOptions.__subclasses__()
    assert len(classes) > 10
    anew, remembered = PipelineOptions(flags), PipelineOptions(flags)
    for cls in [*classes, *classes]:
        expected, view = VIEW_ANEW(anew, cls), beam_memo.view_as(remembered, cls)
        assert type(view) is cls
        assert view._visible_option_list() == expected._visible_option_list()
        assert str(view) == str(expected)
    assert remembered._all_options == anew._all_options
    assert remembered.get_all_options() == anew.get_all_options()


def test_options_of_one_pipeline_are_shared_by_its_views_and_by_no_other_pipeline():
    one, other = PipelineOptions(FLAGS), PipelineOptions(FLAGS)
    view = beam_memo.view_as(one, pipeline_options.DebugOptions)
    view.experiments.append("c")
    beam_memo.view_as(one, DirectOptions).direct_num_workers = 7
    again = beam_memo.view_as(beam_memo.view_as(one, StandardOptions), pipeline_options.DebugOptions)
    assert again.experiments == ["a", "b", "c"]
    assert beam_memo.view_as(one, DirectOptions).direct_num_workers == 7
    assert beam_memo.view_as(other, pipeline_options.DebugOptions).experiments == ["a", "b"]
    assert beam_memo.view_as(other, DirectOptions).direct_num_workers == 3
    kept = PipelineOptions(FLAGS, direct_num_workers=9)
    assert beam_memo.view_as(kept, DirectOptions).direct_num_workers == 9
    with pytest.raises(AttributeError):
        beam_memo.view_as(one, SetupOptions).no_such_option  # noqa: B018


def test_a_pipeline_runs_with_it_and_beam_is_itself_again_afterwards(remembering: None):
    beam_memo.remember()
    assert core.get_function_args_defaults is beam_memo.function_arguments
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        sums = pipeline | beam.Create([("a", 1), ("b", 2), ("a", 3)]) | beam.CombinePerKey(sum)
        assert_that(sums, equal_to([("a", 4), ("b", 2)]))
    beam_memo.forget()
    assert core.get_function_args_defaults is READ_ARGUMENTS
    assert PipelineOptions.view_as is VIEW_ANEW


def test_state_and_timers_are_seen_with_it(remembering: None):
    class Count(beam.DoFn):
        SPEC = BagStateSpec("seen", VarIntCoder())

        def process(self, element, seen=beam.DoFn.StateParam(SPEC)):  # noqa: B008 - how Beam is told
            seen.add(1)
            yield element[0], sum(seen.read())

    for _ in range(2):
        assert is_stateful_dofn(Count())
        assert not is_stateful_dofn(beam.DoFn())
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        counts = pipeline | beam.Create([("a", 1), ("a", 3)]) | beam.ParDo(Count())
        assert_that(counts, equal_to([("a", 1), ("a", 2)]))
