"""How an installation stands, in lines: for `status` and `top`. Asks nobody."""

from collections.abc import Iterator, Sequence

from crosscope import Capabilities, DeviceMemory, PartState, Problem
from crosscope.cli.output import print_text


def parts_of(found: Capabilities) -> Iterator[tuple[str, str]]:
    """The parts of an installation by name, each with what is to be said of it."""
    for worker in found.inference_workers:
        name = f"worker {worker.index}"
        if worker.state is not PartState.UP:
            yield name, "hangs" if worker.says_serving else "away"
            continue
        memory = f"{_size(worker.memory_bytes)} of {_size(worker.memory_limit_bytes)}"
        if worker.devices:
            memory = _in_use(worker.devices)
        waiting = f"{worker.queued_tokens} tokens wait" if worker.queued_tokens else "nothing waits"
        yield name, f"{worker.device or 'of an older version'}, {memory}, {waiting}"
    queue = found.queue
    if queue.state is PartState.UP:
        counts = ", ".join(f"{number} {state}" for state, number in queue.jobs.items() if number) or "no jobs"
        oldest = f"; the oldest has waited {queue.oldest_queued_s:.0f} s" if queue.oldest_queued_s else ""
        yield "queue", f"{counts}{oldest}"
    else:
        yield "queue", "none" if queue.state is PartState.ABSENT else "away"
    for worker in queue.workers:
        yield "jobs on", ", ".join(filter(None, (worker.name, _in_use(worker.devices))))
    yield "cache", {PartState.UP: "answers", PartState.AWAY: "away", PartState.ABSENT: "none"}[found.cache]
    if found.store.state is not PartState.ABSENT:
        copies = f"{_size(found.store.copies_bytes)} of {_size(found.store.limit_bytes)} in copies"
        away = "away: " if found.store.state is PartState.AWAY else ""
        yield "store", f"{away}{found.store.url}, {found.store.published} published, {copies}"
    yield "disk", f"{_size(found.disk_free_bytes)} free"
    if found.home_bytes is not None and found.home_max_bytes is not None:
        yield "home", f"{_size(found.home_bytes)} of {_size(found.home_max_bytes)}"
    if found.caller.name:
        yield "you", f"{found.caller.name}: {', '.join(found.caller.roles)}"


def traffic_of(found: Capabilities) -> Iterator[tuple[str, str]]:
    """What goes through the server now."""
    traffic = found.traffic
    yield "calls", f"{traffic.calls_per_s:.1f} a second, {traffic.in_flight} under way"
    if traffic.max_prompts_under_way:
        waiting = f", {traffic.prompts_waiting} of them wait" if traffic.prompts_waiting else ""
        yield "prompts", f"{traffic.prompts_under_way} of at most {traffic.max_prompts_under_way}{waiting}"
    yield "errors", f"{traffic.errors_per_s:.1f} a second"
    yield "time", f"{traffic.p50_ms:.1f} ms for half of them, {traffic.p99_ms:.1f} ms for 99 of 100"
    yield "memory", f"{_size(traffic.memory_bytes)} in the server"


def jobs_of(found: Capabilities) -> Iterator[tuple[str, ...]]:
    """Rows of the jobs that run: id, what, share done, speed, message."""
    for job in found.queue.running:
        speed = "" if job.tokens_per_s is None else f"{job.tokens_per_s:,.0f} tokens/s"
        yield job.id, f"{job.kind} {job.name}", f"{job.done:.0%}", speed, job.message


def print_problems(problems: Sequence[Problem]) -> None:
    """Prints what is wrong, and what to do; one sentence if nothing is."""
    print_text("")
    if not problems:
        print_text("All is well.")
    for problem in problems:
        print_text(f"! {problem}")


def _in_use(devices: Sequence[DeviceMemory]) -> str:
    """Memory and work of each device, with its name where there are several."""
    said = []
    for each in devices:
        memory = f"{_size(each.used_bytes)} of {_size(each.limit_bytes)}" if each.limit_bytes else ""
        busy = "" if each.busy is None else f"{each.busy:.0%} busy"
        words = ", ".join(filter(None, (memory, busy))) or "of unknown use"
        said.append(f"{each.name} {words}" if len(devices) > 1 else words)
    return "; ".join(said)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
