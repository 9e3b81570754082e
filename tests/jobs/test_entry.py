"""One attempt of one job, run in this process."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import torch

from crosscope_proto import keys
from crosscope_worker.jobs.entry import RESULT, Attempt, run, sentence
from crosscope_worker.jobs.kinds import KINDS, load_kind
from tests.jobs.rig import Rig

HERE = Path(__file__).parent


@pytest.fixture
def queue(bare_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    monkeypatch.syspath_prepend(str(HERE))
    bare_rig.start_redis()
    with redis.Redis(unix_socket_path=str(bare_rig.socket), decode_responses=True) as client:
        yield client


def attempt(rig: Rig, queue: redis.Redis, name: str) -> Attempt:
    recipe = f"kind: demo-pair\nname: {name}\n"
    queue.hset(keys.job_key("j"), mapping={"claim": "mine", "attempt": "1", "recipe": recipe})
    kinds = {"demo-pair": "job_kinds:run_by_name"}
    return Attempt("j", "mine", rig.queue_url, str(rig.home), "cpu", 0, kinds)


def test_what_is_published_is_not_made_again(bare_rig: Rig, queue: redis.Redis) -> None:
    folder = bare_rig.home / "jobs" / "j"
    folder.mkdir(parents=True)
    (folder / RESULT).write_text('{"name": "plain", "version_id": "v7"}')
    run(attempt(bare_rig, queue, "plain"))
    record = queue.hgetall(keys.job_key("j"))
    assert (record["end"], record["version_id"]) == ("succeeded", "v7")
    assert bare_rig.published("plain") == 0


def test_a_result_is_kept(bare_rig: Rig, queue: redis.Redis) -> None:
    run(attempt(bare_rig, queue, "plain"))
    assert json.loads((bare_rig.home / "jobs" / "j" / RESULT).read_text()) == {
        "name": "plain",
        "version_id": "",
        "message": "Done.",
    }


def test_a_job_knows_what_it_may_read_and_where_it_came_from(bare_rig: Rig, queue: redis.Redis) -> None:
    given = attempt(bare_rig, queue, "plain")
    queue.hset(keys.job_key("j"), "folder", "/home/mine")
    kinds = {"demo-pair": "job_kinds:say_what_may_be_read"}
    run(Attempt(**{**given.__dict__, "kinds": kinds, "data_roots": ["/usr"]}))
    assert queue.hget(keys.job_key("j"), "message") == f"['{bare_rig.home}', '/usr'] from /home/mine"


def test_what_a_job_lost_is_its_last_message(bare_rig: Rig, queue: redis.Redis) -> None:
    """The message is the same for a second attempt that finds everything published."""
    given = attempt(bare_rig, queue, "plain")
    for _ in range(2):
        run(Attempt(**{**given.__dict__, "kinds": {"demo-pair": "job_kinds:lose_texts"}}))
        record = queue.hgetall(keys.job_key("j"))
        assert record["message"] == "Done; 3 of 40 texts of lmsys were left out: 3 × a turn is empty."
        assert (record["end"], record["version_id"]) == ("succeeded", "v1")
        queue.delete(keys.job_key("j"))
        given = attempt(bare_rig, queue, "plain")


def test_a_recipe_of_another_version_fails_with_its_sentence(bare_rig: Rig, queue: redis.Redis) -> None:
    given = attempt(bare_rig, queue, "plain")
    queue.hset(keys.job_key("j"), "recipe", "kind: demo-pair\nname: plain\ncolour: blue\n")
    run(given)
    assert queue.hget(keys.job_key("j"), "message") == "colour: no such key; check its spelling"


def test_a_folder_that_cannot_be_made_fails_the_job(bare_rig: Rig, queue: redis.Redis) -> None:
    (bare_rig.home / "jobs").write_text("a file, not a folder")
    run(attempt(bare_rig, queue, "plain"))
    record = queue.hgetall(keys.job_key("j"))
    assert record["end"] == "failed"
    assert str(record["message"]).startswith("Not a directory: ")


def test_odd_messages_are_stored(bare_rig: Rig, queue: redis.Redis) -> None:
    given = attempt(bare_rig, queue, "plain")
    run(Attempt(**{**given.__dict__, "kinds": {"demo-pair": "job_kinds:fail_oddly"}}))
    message = str(queue.hget(keys.job_key("j"), "message"))
    assert message.startswith("lone ? surrogate, NUL \0 and much more: xxx")
    assert 800 < len(message) <= 1000


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full (/j): free some space and retry"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied: /x"),
        (MemoryError(), "Out of memory: a smaller batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB"), "Out of memory: a smaller batch_size"),
        (ValueError("layer 9 does not exist"), "layer 9 does not exist"),
        (
            ZeroDivisionError("by zero"),
            "Unexpected ZeroDivisionError: by zero. The traceback is in /j/",
        ),
    ],
)
def test_sentences(error: Exception, said: str) -> None:
    assert sentence(error, Path("/j")).startswith(said)


def test_an_error_of_memory_of_a_device_or_the_machine_names_what_to_lower() -> None:
    """torch's error for devices, and the machine's refusal of 2 to the power of 60 bytes."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB"), refused.value):
        said = sentence(error, Path("/j"))
        assert said.startswith("Out of memory: ")
        for field in ("batch_size", "buffer_tokens", "num_latents"):
            assert field in said


def test_only_listed_kinds_run() -> None:
    with pytest.raises(ValueError, match=r"kind 'os', only causal, crosscoder, demo-pair, label, look, published"):
        load_kind(KINDS, "os")
