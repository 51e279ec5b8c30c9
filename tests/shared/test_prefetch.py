import threading
from collections.abc import Iterator

import pytest

from shared.prefetch import prefetched


def test_items_come_in_order() -> None:
    assert list(prefetched(range(50), depth=3)) == list(range(50))


def test_an_exception_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    stream = prefetched(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


def test_no_more_than_depth_items_are_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    stream = prefetched(items(), depth=2)
    assert next(stream) == 0
    threading.Event().wait(0.3)
    assert len(made) <= 4  # one taken, two waiting, one held by the thread
    stream.close()  # type: ignore[attr-defined]


def test_a_consumer_that_stops_early_stops_the_thread() -> None:
    before = threading.active_count()
    stream = prefetched(iter(int, 1))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
