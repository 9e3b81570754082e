"""200 000 generated messages, a tenth of them to the worker's own port; with fewer minutes, as many as fit."""

import time
from pathlib import Path

import pytest
from fixtures_hostile import SERVER_METHODS, WORKER_METHODS, Attacker, Tally, known_values, leaks, running_stack
from fixtures_messages import MARK

from tests.stress.rows import minutes, say

pytestmark = [pytest.mark.stress, pytest.mark.asyncio, pytest.mark.timeout(0)]

NUM = {"server": 180_000, "worker": 20_000}
A_ROUND = 2000
LIMIT_S = 5.0


async def attack(attacker: Attacker, num: int, until: float, first_seed: int) -> Tally:
    """Rounds of calls, each with a seed of its own, until there were `num` or time is over."""
    rounds = 0
    while attacker.tally.num_calls < num and time.monotonic() < until:
        await attacker.attack(min(A_ROUND, num - attacker.tally.num_calls), first_seed + rounds, limit_s=LIMIT_S)
        rounds += 1
    return attacker.tally


async def test_generated_messages(tmp_path: Path) -> None:
    with running_stack(tmp_path / "stack") as stack:
        await stack.ready(stack.server_address, "crosscope.v1.Prompts")
        known = await known_values(stack)
        begun, seconds = time.monotonic(), 60 * minutes(20)
        attackers = {
            "server": Attacker(stack.server_address, SERVER_METHODS, known),
            "worker": Attacker(stack.worker_address, WORKER_METHODS, known | {"version_id": [stack.version_id]}),
        }
        for name, share in (("server", 0.9), ("worker", 1.0)):
            tally = await attack(attackers[name], NUM[name], begun + share * seconds, 1000)
            for each in tally.wrong[:20]:
                print(each[:1000])
            say(f"generated calls to the {name}", tally.num_calls, "calls", f"{NUM[name]}", ok=tally.num_calls > 0)
            say(f"… without a right answer ({name})", len(tally.wrong), "calls", "0", ok=not tally.wrong)
            say(f"… longest ({name})", tally.longest_s, "s", f"< {LIMIT_S:g}", ok=tally.longest_s < LIMIT_S + 1)
            found = leaks(stack.log_of(name))
            print(*found[:20], sep="\n")
            say(f"lines of the {name}'s log with {MARK}, a bug or a traceback", len(found), "lines", "0", ok=not found)
        gone = [name for name, process in stack.processes.items() if process.poll() is not None]
        say("processes that ended", len(gone), ", ".join(gone), "0", ok=not gone)
