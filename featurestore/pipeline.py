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
    changed = threading.Condition()
    taking = threading.Lock()
    iterator = iter(items)
    slots: deque[_Slot[B]] = deque()
    state = {"stopped": False, "ended": False}

    def take() -> tuple[_Slot[B], A] | None:
        """Wait for room, then begin the next item; None when there is no more."""
        with taking:
            with changed:
                changed.wait_for(lambda: len(slots) < ahead or state["stopped"])
                if state["stopped"] or state["ended"]:
                    return None
            slot: _Slot[B] = _Slot()
            try:
                item = next(iterator)
            except StopIteration:
                with changed:
                    state["ended"] = True
                    changed.notify_all()
                return None
            except BaseException as error:  # handed over: raised again in the consumer
                slot.error, slot.is_done = error, True
                with changed:
                    state["ended"] = True
                    slots.append(slot)
                    changed.notify_all()
                return None
            with changed:
                slots.append(slot)
            return slot, item

    def put(slot: _Slot[B], value: B) -> bool:
        with changed:
            changed.wait_for(lambda: len(slot.values) < depth or state["stopped"])
            slot.values.append(value)
            changed.notify_all()
            return not state["stopped"]

    def run() -> None:
        while (taken := take()) is not None:
            slot, item = taken
            try:
                for value in work(item):
                    if not put(slot, value):
                        return
            except BaseException as error:  # handed over: raised again in the consumer
                slot.error = error
            with changed:
                slot.is_done = True
                changed.notify_all()

    threads = [threading.Thread(target=run, name=f"worker-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(
                    lambda: (
                        (slots and (slots[0].values or slots[0].is_done)) or (not slots and state["ended"])
                    )
                )
                if not slots:
                    return
                slot = slots[0]
                value: B | None = None
                has_value = bool(slot.values)
                if has_value:
                    value = slot.values.popleft()
                else:
                    slots.popleft()
                changed.notify_all()
            if has_value:
                yield value  # type: ignore[misc]
            elif slot.error is not None:
                raise slot.error
    finally:
        with changed:
            state["stopped"] = True
            changed.notify_all()
        for thread in threads:
            thread.join()
