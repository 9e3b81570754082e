"""Reads the recipes of callers, one at a time, on a thread for that alone.

Reading a recipe can take half a second, during which the interpreter is busy. Many large recipes wait for this one
thread, so they do not fill the threads that all other calls need. Knows nothing about jobs.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from crosscope_proto.recipe import Recipe, parse_recipe
from crosscope_server.errors import Overloaded

MAX_WAITING = 32
"""Most recipes that wait for the thread."""


class RecipeReader:
    """Parses and checks recipes. For one event loop; the thread starts with the first one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recipes")
        self._num_waiting = 0

    async def read(self, text: str) -> Recipe:
        """The recipe. Raises RecipeError, or Overloaded."""
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} recipes are waiting to be checked; try again", retry_after_s=1.0)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, parse_recipe, text)
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """Drops the recipes that wait. One that is being read ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
