import contextlib
import copy
import pickle
import threading
from contextvars import copy_context

from cramer_peft.context import FixedMasks, RequestContext


def test_nesting_and_exceptions_restore_the_masks() -> None:
    context = RequestContext()
    outer, inner = FixedMasks({}), FixedMasks({})
    assert context.current() is None
    with context.using(outer):
        assert context.current() is outer
        with contextlib.suppress(KeyboardInterrupt), context.using(inner):
            assert context.current() is inner
            raise KeyboardInterrupt
        assert context.current() is outer
        with context.using(None):
            assert context.current() is None
        assert context.current() is outer
        assert context._local.compiled.masks is outer
    assert context.current() is None
    assert context._local.compiled.masks is None


def test_two_contexts_do_not_mix() -> None:
    first, second = RequestContext(), RequestContext()
    a, b = FixedMasks({}), FixedMasks({})
    with first.using(a), second.using(b):
        assert first.current() is a
        assert second.current() is b
    assert (first.current(), second.current()) == (None, None)


def test_a_thread_starts_without_a_request() -> None:
    context, masks, seen = RequestContext(), FixedMasks({}), []
    with context.using(masks):
        thread = threading.Thread(target=lambda: seen.append(context.current()))
        thread.start()
        thread.join()
        copied = copy_context()
    assert seen == [None]
    assert copied.run(context.current) is masks


def test_interleaved_contexts_leave_nothing_for_compiled_code() -> None:
    """As asyncio does it: the block that began first ends first."""
    context = RequestContext()
    one, two = copy_context(), copy_context()
    first, second = context.using(FixedMasks({})), context.using(FixedMasks({}))
    one.run(first.__enter__)
    two.run(second.__enter__)
    one.run(first.__exit__, None, None, None)
    two.run(second.__exit__, None, None, None)
    assert context.current() is None
    assert context._local.compiled.masks is None


def test_copies_start_without_a_request() -> None:
    context = RequestContext()
    with context.using(FixedMasks({})):
        copied, loaded = copy.deepcopy(context), pickle.loads(pickle.dumps(context))
        assert copied is not context
        assert copied.current() is None
        assert loaded.current() is None
