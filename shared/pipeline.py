"""Work in threads with the results in order, in bounded memory: what runs ahead waits its turn."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class _Slot(Generic[B]):
    """The results of one item, in order, at most `depth` of them waiting."""

    def __init__(self) -> None:
        self.values: deque[B] = deque()
        self.is_done = False
        self.error: BaseException | None = None


def in_order(
    work: Callable[[A], Iterable[B]], items: Iterable[A], *, workers: int, ahead: int, depth: int = 1
) -> Iterator[B]:
    """Yield all results of `work` on every item, in order, while threads work on the next items.

    At most `ahead` items are begun and not yet used up, at most `depth` results of each wait; so
    memory is bounded, and the first item is always being worked on. `items` is advanced by one
    thread at a time. An exception is raised at the place where its result would have come. A
    consumer that stops early stops the threads.
    """
    line = _Line(work, items, ahead, depth)
    threads = [threading.Thread(target=line.run, name=f"worker-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while (slot := line.first()) is not None:
            if slot.values:
                yield line.taken_from(slot)
            else:
                line.leave(slot)
    finally:
        line.stop()
        for thread in threads:
            thread.join()


class _Line(Generic[A, B]):
    """Slots in the order of their items, between the threads that fill them and one consumer."""

    def __init__(self, work: Callable[[A], Iterable[B]], items: Iterable[A], ahead: int, depth: int) -> None:
        self._work, self._items = work, iter(items)
        self._ahead, self._depth = ahead, depth
        self._changed, self._taking = threading.Condition(), threading.Lock()
        self._slots: deque[_Slot[B]] = deque()
        self._is_stopped, self._is_ended = False, False

    def run(self) -> None:
        """Work on one item after the other, in a thread of its own, until there are no more."""
        while (begun := self._begin()) is not None:
            slot, item = begun
            try:
                for value in self._work(item):
                    if not self._put(slot, value):
                        return
            except BaseException as error:  # handed over: raised again in the consumer
                slot.error = error
            with self._changed:
                slot.is_done = True
                self._changed.notify_all()

    def _begin(self) -> tuple[_Slot[B], A] | None:
        """Wait for room, then begin the next item; None when there is no more."""
        with self._taking:
            with self._changed:
                self._changed.wait_for(lambda: len(self._slots) < self._ahead or self._is_stopped)
                if self._is_stopped or self._is_ended:
                    return None
            slot: _Slot[B] = _Slot()
            try:
                item = next(self._items)
            except StopIteration:
                self._end(None)
                return None
            except BaseException as error:  # handed over: raised again in the consumer
                slot.error, slot.is_done = error, True
                self._end(slot)
                return None
            with self._changed:
                self._slots.append(slot)
            return slot, item

    def _end(self, last: _Slot[B] | None) -> None:
        """Begin nothing more; the consumer must not see the end before a last slot's error."""
        with self._changed:
            self._is_ended = True
            if last is not None:
                self._slots.append(last)
            self._changed.notify_all()

    def _put(self, slot: _Slot[B], value: B) -> bool:
        """Add a result when there is room for it; tell whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: len(slot.values) < self._depth or self._is_stopped)
            slot.values.append(value)
            self._changed.notify_all()
            return not self._is_stopped

    def first(self) -> _Slot[B] | None:
        """Wait until the first slot has a result or is done, and return it; None behind the last."""

        def has_news() -> bool:
            if not self._slots:
                return self._is_ended
            return bool(self._slots[0].values) or self._slots[0].is_done

        with self._changed:
            self._changed.wait_for(has_news)
            return self._slots[0] if self._slots else None

    def taken_from(self, slot: _Slot[B]) -> B:
        """Take the next result of the first slot."""
        with self._changed:
            value = slot.values.popleft()
            self._changed.notify_all()
            return value

    def leave(self, slot: _Slot[B]) -> None:
        """Be done with the first slot; raise what went wrong in it."""
        with self._changed:
            self._slots.popleft()
            self._changed.notify_all()
        if slot.error is not None:
            raise slot.error

    def stop(self) -> None:
        """Have all threads end as soon as they look."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
