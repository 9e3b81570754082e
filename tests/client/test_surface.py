import inspect

import pytest

import crosscope
from crosscope import Busy, CrosscopeError, InvalidInput, JobFailed


def test_all_is_exact() -> None:
    assert crosscope.__all__ == [
        "BASE",
        "CHAT",
        "Busy",
        "Client",
        "CoActive",
        "Conflict",
        "Crosscoder",
        "CrosscoderInfo",
        "CrosscopeError",
        "DeadlineExceeded",
        "Detector",
        "Encoding",
        "Estimate",
        "Example",
        "ExampleGroup",
        "ExampleList",
        "FieldViolation",
        "InvalidInput",
        "Job",
        "JobCancelled",
        "JobEvent",
        "JobFailed",
        "JobInfo",
        "JobState",
        "JobUpdate",
        "Jobs",
        "Latent",
        "LatentActivation",
        "LatentClass",
        "LatentList",
        "LatentScaling",
        "LeftOut",
        "ModelEstimates",
        "Neighbour",
        "NotFound",
        "Plan",
        "PlanEntry",
        "ServerError",
        "Tls",
        "TokenRole",
        "Tokens",
        "TopLatent",
        "TopLatents",
        "TrainingCurves",
        "Unauthorized",
        "Unavailable",
        "VersionGone",
        "__version__",
    ]
    assert all(getattr(crosscope, name) is not None for name in crosscope.__all__)
    assert dir(crosscope) == sorted(crosscope.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Feature'"):
        crosscope.Feature  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_every_error_stands_in_the_tree_and_in_the_docs() -> None:
    import crosscope._errors as module

    errors = [e for e in vars(module).values() if inspect.isclass(e) and issubclass(e, Exception)]
    assert len(errors) == 12
    for error in errors:
        assert issubclass(error, CrosscopeError)
        assert error.__name__ in crosscope.__all__
        assert error.__name__ in (module.__doc__ or "")


def test_errors_are_also_the_standard_kind() -> None:
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(crosscope.NotFound, LookupError)
    assert issubclass(crosscope.Unavailable, ConnectionError)
    assert issubclass(crosscope.DeadlineExceeded, TimeoutError)
    assert not issubclass(Busy, ValueError)
    assert not issubclass(JobFailed, ValueError)
