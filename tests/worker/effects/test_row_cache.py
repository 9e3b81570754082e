"""The cache of rows against lists of stamps, one a column."""

import itertools
import random
from collections.abc import Sequence

import pytest
import torch

from crosscope_worker.effects.row_cache import RowCache

HEADS, WIDTH, LAYERS = 2, 3, 2


def write(cache: RowCache, stamps: Sequence[Sequence[int]]) -> None:
    """Writes the next columns of every row; a layer's own number is added to each stamp."""
    for layer in range(LAYERS):
        states = (torch.tensor(stamps, dtype=torch.float32) + layer)[:, None, :, None].expand(-1, HEADS, -1, WIDTH)
        keys, values = cache.update(states, -states, layer)
        assert keys.shape == (len(stamps), HEADS, cache.layers[layer].length, WIDTH)
        assert torch.equal(values, -keys)


def check(cache: RowCache, rows: Sequence[Sequence[int]]) -> None:
    """Every row ends at the last column, with nothing of others' in it."""
    assert cache.num_rows == len(rows)
    for place, layer in itertools.product(range(len(rows)), range(LAYERS)):
        keys, values = cache.layers[layer].buffers
        own = keys[place, :, cache.length - len(rows[place]) : cache.length]
        expected = (torch.tensor(rows[place], dtype=torch.float32) + layer)[None, :, None].expand_as(own)
        assert torch.equal(own, expected)
        assert torch.equal(values[place, :, cache.length - len(rows[place]) : cache.length], -own)


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_come_and_go_keep_their_columns(seed: int) -> None:
    chance, stamps = random.Random(seed), itertools.count(1)
    cache, rows = RowCache(), list[list[int]]()
    for _ in range(150):
        match chance.choice(["write", "write", "fail", "append", "remove", "remove", "trim"]):
            case "append":
                width = chance.choice([1, 5, 90])
                added = [[next(stamps) for _ in range(width)] for _ in range(2)]
                other = RowCache()
                write(other, added)
                other.commit()
                chosen = [chance.randrange(2) for _ in range(chance.randint(1, 3))]
                cache.append(other, chosen)
                rows += [list(added[row]) for row in chosen]
            case "write" | "fail" as what if rows:
                new = [[next(stamps) for _ in range(3)] for _ in rows]
                write(cache, new)
                if what == "write":
                    cache.commit()
                    rows = [old + more for old, more in zip(rows, new, strict=True)]
                else:
                    cache.roll_back()
            case "remove" if rows:
                place = chance.randrange(len(rows))
                cache.remove(place)
                rows[place] = rows[-1]
                rows.pop()
            case "trim" if rows and (spare := cache.length - max(map(len, rows))):
                cache.trim(spare)
            case _:
                pass
        check(cache, rows)


def test_growing_copies_nothing_while_there_is_room() -> None:
    cache = RowCache()
    write(cache, [[1], [2]])
    buffer = cache.layers[0].buffers[0]
    for _ in range(buffer.shape[2] - 1):
        write(cache, [[1], [2]])
    assert cache.layers[0].buffers[0] is buffer
    write(cache, [[1], [2]])
    assert cache.layers[0].buffers[0].shape[2] == 2 * buffer.shape[2]
    assert cache.bytes_per_token() == LAYERS * 2 * HEADS * WIDTH * 4
    assert cache.bytes_per_token(1) == 2 * HEADS * WIDTH * 4


def test_without_memory_for_new_rows_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = RowCache(), RowCache()
    write(cache, [[1, 2], [3, 4]])
    write(other, [[5, 6, 7, 8]])
    for each in (cache, other):
        each.commit()
    moved, calls = type(cache.layers[0]).moved, itertools.count()

    def fail(*args: object) -> object:
        if next(calls) == 1:
            raise torch.OutOfMemoryError
        return moved(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(type(cache.layers[0]), "moved", fail)
    with pytest.raises(torch.OutOfMemoryError):
        cache.append(other, [0])
    check(cache, [[1, 2], [3, 4]])
