import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.pipeline import in_order


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 4), max_size=12),
    workers=st.integers(1, 4),
    ahead=st.integers(1, 5),
    depth=st.integers(1, 3),
    seed=st.randoms(use_true_random=False),
)
def test_results_come_in_order_whatever_the_threads_do(
    counts: list[int], workers: int, ahead: int, depth: int, seed: object
) -> None:
    delays = [seed.random() * 2e-3 for _ in counts]  # type: ignore[attr-defined]

    def work(item: int) -> Iterator[tuple[int, int]]:
        for number in range(counts[item]):
            time.sleep(delays[item])
            yield item, number

    found = list(in_order(work, range(len(counts)), workers=workers, ahead=ahead, depth=depth))
    assert found == [(item, number) for item, count in enumerate(counts) for number in range(count)]


def test_no_more_is_begun_than_may_wait() -> None:
    begun: list[int] = []

    def work(item: int) -> list[int]:
        begun.append(item)
        return [item]

    results = in_order(work, range(100), workers=3, ahead=5)
    for number in range(10):
        assert next(results) == number
        time.sleep(0.02)
        assert len(begun) <= number + 1 + 5
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", ["work", "items"])
def test_an_exception_comes_where_its_result_would_have(where: str) -> None:
    def items() -> Iterator[int]:
        for number in range(10):
            if where == "items" and number == 6:
                raise ValueError("item 6")
            yield number

    def work(item: int) -> list[int]:
        if where == "work" and item == 6:
            raise ValueError("item 6")
        return [item]

    results = in_order(work, items(), workers=3, ahead=4)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="item 6"):
        next(results)


def test_an_exception_before_the_first_item_is_not_taken_for_the_end() -> None:
    def items() -> Iterator[int]:
        time.sleep(1e-4)  # the consumer waits by then
        raise ValueError("no item")
        yield 0

    for _ in range(200):
        with pytest.raises(ValueError, match="no item"):
            list(in_order(lambda item: [item], items(), workers=4, ahead=4))


def test_a_consumer_that_stops_early_stops_the_threads() -> None:
    before = threading.active_count()
    results = in_order(lambda item: [item] * 5, iter(range(10**9)), workers=4, ahead=8)
    assert next(results) == 0
    assert threading.active_count() > before
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_threads_work_at_the_same_time() -> None:
    """Two items that wait for each other can only be worked on together."""
    meeting = threading.Barrier(2, timeout=10)

    def work(item: int) -> list[int]:
        meeting.wait()
        return [item]

    assert list(in_order(work, range(4), workers=2, ahead=4)) == [0, 1, 2, 3]
