"""What a user can name: everything that a call gives, under `crosscope`, and in both kinds of client."""

import collections.abc
import copy
import inspect
import pickle
import re
from typing import Any

import pytest

import crosscope
from crosscope import Busy, Client, CrosscopeError, Estimate, InvalidInput, JobFailed, Tls
from crosscope._decode import job as decoded_job
from crosscope_proto.v1 import jobs_pb2

CLASSES = {name: value for name in crosscope.__all__ if inspect.isclass(value := getattr(crosscope, name))}
OWN = {name: value for name, value in CLASSES.items() if not value.__module__.startswith("crosscope_proto.")}
PAIRS = {name.removeprefix("Async"): name for name in OWN if name.startswith("Async")}


def test_public_classes_call_themselves_by_their_public_name() -> None:
    assert len(OWN) > 40
    for name, each in OWN.items():
        assert f"{each.__module__}.{each.__qualname__}" == f"crosscope.{name}"
    assert repr(Client) == "<class 'crosscope.Client'>"


def test_results_and_handles_travel() -> None:
    for each in (Estimate(1.0, 0.5), Tls(ca="ca.pem"), crosscope.JobState.FAILED, crosscope.CoActive(3, 0.5)):
        assert pickle.loads(pickle.dumps(each)) == copy.deepcopy(each) == each
    for kind in (Client, crosscope.AsyncClient):
        made = kind("host:1", "secret", 3.0, Tls(ca="ca.pem"), "ada")
        again = pickle.loads(pickle.dumps(made))
        assert type(again) is kind
        assert again._transport.connection == made._transport.connection


def test_errors_travel_with_what_they_hold() -> None:
    job = decoded_job(jobs_pb2.Job(id="j1", kind="crosscoder", name="demo", message="the disk is full"))
    violation = crosscope.FieldViolation("top_k", "is 0")
    for error, holds in (
        (JobFailed(job), {"job": job}),
        (crosscope.JobCancelled(job), {"job": job}),
        (InvalidInput("top_k: is 0", (violation,)), {"violations": (violation,)}),
        (crosscope.VersionGone("gone", "v2"), {"newest": "v2"}),
        (crosscope.StaleWrite("stale", "bread", 7), {"now": "bread", "revision": 7}),
        (Busy("too much waits", 1.5), {"retry_after_s": 1.5}),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
        assert {name: getattr(again, name) for name in holds} == holds


def annotations(each: type) -> str:
    """All annotations of a class's public fields, properties and methods, as text."""
    texts: list[str] = []
    for base in each.__mro__[:-1]:
        texts += map(str, vars(base).get("__annotations__", {}).values())
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function):
                texts += map(str, function.__annotations__.values())
    return " ".join(texts)


def test_whatever_a_call_takes_or_gives_can_be_named() -> None:
    """A class of this package that stands in a public annotation, but is not public, could not be annotated."""
    mentioned: set[str] = set()
    for each in OWN.values():
        mentioned |= set(re.findall(r"crosscope\.(?:_\w+\.)*([A-Z]\w+)", annotations(each)))
        mentioned |= set(re.findall(r"\bAsync[A-Z]\w+", annotations(each))) - set(collections.abc.__all__)
    assert {"CrosscoderInfo", "AsyncLatent", "Latent"} <= mentioned
    assert mentioned <= set(crosscope.__all__)


def surface(each: type) -> dict[str, object]:
    """Public members: a method's parameters and defaults, or that it is another thing."""
    found: dict[str, object] = {}
    for name, member in inspect.getmembers(each):
        if not name.startswith("_"):
            kinds = inspect.signature(member).parameters.values() if inspect.isfunction(member) else None
            found[name] = [(p.name, p.kind, p.default) for p in kinds] if kinds is not None else "value"
    return found


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_both_kinds_of_client_have_the_same_calls(name: str) -> None:
    blocking, asynchronous = surface(getattr(crosscope, name)), surface(getattr(crosscope, PAIRS[name]))
    for only_sequences in ("count", "index"):
        blocking.pop(only_sequences, None)
    assert blocking == asynchronous
    assert getattr(crosscope, name).__doc__.replace(name, PAIRS[name]), "both are described"


def test_no_call_of_the_asynchronous_client_blocks() -> None:
    """Every public method that asks the server is a coroutine, or gives something to iterate over with `async for`."""
    at_once = {"AsyncCrosscoder.columns", "AsyncLatent.role_share", "AsyncLatent.to_row", "AsyncColumns.get"}
    at_once |= {"AsyncLook.to_pandas"}
    at_once |= {f"AsyncColumns.{name}" for name in ("items", "keys", "values")}
    for name in PAIRS.values():
        for method, member in inspect.getmembers(getattr(crosscope, name), inspect.isfunction):
            if not method.startswith("_") and f"{name}.{method}" not in at_once:
                assert inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member), f"{name}.{method}"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Feature"):
        crosscope.Feature  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_every_error_stands_in_the_tree_and_in_the_docs() -> None:
    import crosscope._errors as module

    errors = [e for e in vars(module).values() if inspect.isclass(e) and issubclass(e, Exception)]
    assert len(errors) == 13
    for error in errors:
        assert issubclass(error, CrosscopeError)
        assert error.__name__ in crosscope.__all__
        assert error.__name__ in (module.__doc__ or "")


def test_errors_are_also_the_standard_kind() -> None:
    standard: dict[type, Any] = {
        InvalidInput: ValueError,
        crosscope.NotFound: LookupError,
        crosscope.Unavailable: ConnectionError,
        crosscope.DeadlineExceeded: TimeoutError,
    }
    assert all(issubclass(ours, theirs) for ours, theirs in standard.items())
    assert not issubclass(Busy, ValueError)
    assert not issubclass(JobFailed, ValueError)
