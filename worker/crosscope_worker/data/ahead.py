"""Makes items ahead of time, on a thread of its own. Knows nothing of what they are."""

import queue
import threading
from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _Ended(NamedTuple):
    """The last thing that a thread tells: why there are no more items, None at their end."""

    error: BaseException | None


def ahead(items: Generator[T], depth: int, name: str) -> Generator[T]:
    """Yields `items` in their order, made on a thread called `name`; no thread at depth 0.

    At most `depth` items wait while one more is made. The thread starts with the first item that is asked for.
    Raises what `items` raises, after the items before it. At its end, and when it is closed, `items` is closed too
    and the thread has ended.
    """
    if not depth:
        with closing(items):
            yield from items
        return
    made: queue.Queue[tuple[T] | _Ended] = queue.Queue()
    room, stopped = threading.Semaphore(depth + 1), threading.Event()

    def make() -> None:
        try:
            with closing(items):
                while room.acquire() and not stopped.is_set():
                    made.put((next(items),))
        except StopIteration:
            made.put(_Ended(None))
        except BaseException as error:  # Who reads the items raises it.
            made.put(_Ended(error))

    thread = threading.Thread(target=make, name=name, daemon=True)
    thread.start()
    try:
        while not isinstance(found := made.get(), _Ended):
            room.release()
            yield found[0]
        if found.error is not None:
            raise found.error
    finally:
        stopped.set()
        room.release()
        thread.join()
