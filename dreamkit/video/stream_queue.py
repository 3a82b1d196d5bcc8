"""A bounded queue between two threads that either side can close."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Closed(Exception):
    """The queue is closed: nothing goes in, nothing comes out."""


class BoundedQueue(Generic[Item]):
    """Items in order; a writer waits while it is full, a reader while it is empty.

    Args:
        capacity: items it holds at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Add an item, waiting for room.

        Raises:
            Closed: nobody will read it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or len(self._items) < self.capacity)
            if self._is_closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Item:
        """Take the oldest item, waiting for one.

        Raises:
            Closed: there will be none.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or len(self._items) > 0)
            if self._is_closed:
                raise Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Forget what is in it and wake everybody who waits."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()
