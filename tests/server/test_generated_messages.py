"""Thousands of generated messages to a server and to a worker's own port: every answer is a sentence, and no bug.

`make stress` sends 200 000 (tests/stress/test_generated.py).
"""

import pytest
from fixtures_hostile import SERVER_METHODS, WORKER_METHODS, Attacker, known_values, leaks, running_stack

pytestmark = pytest.mark.asyncio

SERVER_CALLS, WORKER_CALLS = 4000, 1000
ANSWERED = ("OK", "CUT OFF")
STRICT = {"/crosscope.v1.Prompts/Contrast"}
"""Methods that few generated messages satisfy; other tests show that they answer."""


async def test_no_message_ends_in_a_bug_and_none_is_logged(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_stack(tmp_path_factory.mktemp("hostile")) as stack:
        await stack.ready(stack.server_address, "crosscope.v1.Prompts")
        known = await known_values(stack)
        server = Attacker(stack.server_address, SERVER_METHODS, known)
        worker = Attacker(stack.worker_address, WORKER_METHODS, known | {"version_id": [stack.version_id]})
        for attacker, num in ((server, SERVER_CALLS), (worker, WORKER_CALLS)):
            tally = await attacker.attack(num, seed=7, limit_s=60)
            assert tally.wrong == []
            assert tally.num_calls == num
            # The messages come past the checks: every method answers some of them.
            silent = {path for path, _ in tally.codes} - {path for path, code in tally.codes if code in ANSWERED}
            assert silent <= STRICT
        assert [process.poll() for process in stack.processes.values()] == [None] * 3
        assert leaks(stack.log_of("server")) == []
        assert leaks(stack.log_of("worker")) == []
