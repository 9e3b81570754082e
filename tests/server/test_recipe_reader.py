import asyncio
import threading

import pytest
from fixtures_waiting import PATIENCE_S

from crosscope_proto.recipe import RecipeError
from crosscope_server.errors import Overloaded
from crosscope_server.jobs import recipes
from crosscope_server.jobs.recipes import MAX_WAITING, RecipeReader

pytestmark = pytest.mark.asyncio

SLOW = "[" + "[]," * 21_000 + "]"
"""Takes 0.3 s to refuse."""


async def test_a_crowd_of_recipes_waits_for_one_thread_of_its_own(monkeypatch):
    threads: set[str] = set()
    parse = recipes.parse_recipe

    def noted(text: str):
        threads.add(threading.current_thread().name)
        return parse(text)

    monkeypatch.setattr(recipes, "parse_recipe", noted)
    reader = RecipeReader()
    try:
        tasks = [asyncio.create_task(reader.read(SLOW)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="are waiting to be checked; try again"):
            await reader.read("kind: x")
        # Every other call's threads are free, and the event loop goes on.
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), PATIENCE_S) == 7
        for task in tasks[2:]:
            task.cancel()
        for task in tasks[:2]:
            with pytest.raises(RecipeError, match="holds more than"):
                await task
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(RecipeError, match="mapping"):
            await reader.read("")
    finally:
        reader.close()
    assert len(threads) == 1
    assert next(iter(threads)).startswith("recipes")
