import contextlib
import copy
import pickle
import threading
from contextvars import copy_context

from cramer_peft.carrier import RequestCarrier


def test_nesting_and_exceptions_restore_what_was_in_force() -> None:
    carrier = RequestCarrier()
    outer, inner = object(), object()
    assert carrier.current() is None
    with carrier.carrying(outer):
        assert carrier.current() is outer
        with contextlib.suppress(KeyboardInterrupt), carrier.carrying(inner):
            assert carrier.current() is inner
            raise KeyboardInterrupt
        assert carrier.current() is outer
        with carrier.carrying(None):
            assert carrier.current() is None
        assert carrier.current() is outer
        assert carrier._local.held.source is outer
    assert carrier.current() is None
    assert carrier._local.held.source is None


def test_two_carriers_do_not_mix() -> None:
    first, second = RequestCarrier(), RequestCarrier()
    with first.carrying("a"), second.carrying("b"):
        assert (first.current(), second.current()) == ("a", "b")
    assert (first.current(), second.current()) == (None, None)


def test_a_thread_starts_without_a_request() -> None:
    carrier, seen = RequestCarrier(), []
    with carrier.carrying("a"):
        thread = threading.Thread(target=lambda: seen.append(carrier.current()))
        thread.start()
        thread.join()
        context = copy_context()
    assert seen == [None]
    assert context.run(carrier.current) == "a"


def test_interleaved_contexts_leave_nothing_for_compiled_code() -> None:
    """As asyncio does it: the block that began first ends first."""
    carrier = RequestCarrier()
    one, two = copy_context(), copy_context()
    first, second = carrier.carrying("a"), carrier.carrying("b")
    one.run(first.__enter__)
    two.run(second.__enter__)
    one.run(first.__exit__, None, None, None)
    two.run(second.__exit__, None, None, None)
    assert carrier.current() is None
    assert carrier._local.held.source is None


def test_copies_start_without_a_request() -> None:
    carrier = RequestCarrier()
    with carrier.carrying(object()):
        copied, loaded = copy.deepcopy(carrier), pickle.loads(pickle.dumps(carrier))
        assert copied is not carrier
        assert copied.current() is None
        assert loaded.current() is None
