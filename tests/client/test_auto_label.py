"""`crosscope label auto` says a whole recipe; an automatic label says how well it fits."""

import json
from collections.abc import Callable

import pytest

from crosscope import Annotation, Words
from crosscope.cli import run
from crosscope_proto.recipe import LabelRecipe, parse_recipe
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc

SCORES = {"detection": 0.825, "detection_n": 40.0, "detection_se": 0.0512}
SCORES |= {"fuzzing": 1.0, "fuzzing_n": 6.0, "fuzzing_se": 0.16, "other": 0.5}


class Submitted(jobs_pb2_grpc.JobsServicer):
    """Takes recipes."""

    def __init__(self) -> None:
        self.recipes: list[LabelRecipe] = []

    def SubmitJob(self, request, context):
        recipe = parse_recipe(request.recipe_yaml)
        assert isinstance(recipe, LabelRecipe)
        self.recipes.append(recipe)
        return jobs_pb2.SubmitJobResponse(job=jobs_pb2.Job(id="j1", kind="label", name=recipe.name))

    def PlanJob(self, request, context):
        job = jobs_pb2.Job(kind="label", name=parse_recipe(request.recipe_yaml).name)
        entry = jobs_pb2.PlanEntry(name="requests", value=26, note="at most")
        return jobs_pb2.PlanJobResponse(job=job, entries=[entry])


@pytest.fixture
def auto(serve, capsys) -> Callable[..., tuple[int, str, str]]:
    jobs = Submitted()
    address = serve(jobs).address

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["--address", address, "label", "auto", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    call.recipes = jobs.recipes  # pyright: ignore[reportFunctionMemberAccess]
    return call


def test_options_make_a_recipe(auto) -> None:
    code, out, _ = auto("demo", "--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--key", "MY_API_KEY")
    assert (code, out) == (0, "j1\nfollow it with: crosscope watch j1\n")
    wanted = "by: endpoint, address: 'http://127.0.0.1:1/v1', model: m, key: MY_API_KEY"
    assert auto.recipes[-1] == parse_recipe(f"{{kind: label, name: demo, explainer: {{{wanted}}}}}")
    auto("demo", "--chat", "--ids", "3,5,9", "--requests", "7", "--tokens", "8", "--version", "v1")
    rest = "version: v1, latents: {ids: [3, 5, 9]}, budget: {requests: 7, tokens: 8}"
    assert auto.recipes[-1] == parse_recipe(f"{{kind: label, name: demo, explainer: {{by: chat}}, {rest}}}")
    any_of = ("--specific-to", "any", "--verdict", "weak", "--order-by=-max", "--limit", "4")
    assert auto("demo", "--chat", *any_of)[0] == 0
    latents = "{specific_to: null, verdicts: [weak], order_by: -max, limit: 4}"
    assert auto.recipes[-1] == parse_recipe(f"{{kind: label, name: demo, explainer: {{by: chat}}, latents: {latents}}}")


def test_check_says_what_it_takes(auto) -> None:
    code, out, _ = auto("demo", "--chat", "--check")
    assert (code, out.splitlines()) == (0, ["label demo", "what      how much  note", "requests  26        at most"])
    assert json.loads(auto("demo", "--chat", "--check", "--json")[1])["entries"][0]["value"] == 26


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say who labels: --endpoint with --model, or --chat"),
        (("--endpoint", "http://x/v1"), "say who labels"),
        (("--chat", "--model", "m"), "say who labels"),
        (("--chat", "--ids", "1,x"), "--ids: 'x' is no latent id"),
        (("--chat", "--ids", "1", "--limit", "2"), "leave the other choices out"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], says: str, auto) -> None:
    code, _, err = auto("demo", *arguments)
    assert code == 2
    assert says in err


def test_the_plain_command_is_as_it_was(capsys) -> None:
    assert run(["label", "--help"]) == 0
    assert "label auto CROSSCODER" in capsys.readouterr().out
    assert run(["label", "auto", "--help"]) == 0
    assert "--endpoint" in capsys.readouterr().out


def test_scores_in_words() -> None:
    said = "detection 0.82 ± 0.05 (n 40), fuzzing 1 ± 0.2 (n 6), other 0.5"
    assert Words("refusals", "m", 0.0, 1, SCORES).fit == said
    assert Words("refusals", "m", 0.0, 1).fit == ""


def test_a_programs_label_shows_how_well_it_fits() -> None:
    words = Words("refusals", "m", 0.0, 3, {"detection": 0.75})
    said = str(Annotation(7, None, words, None, None, {}))
    assert "refusals  (by m, revision 3), detection 0.75" in said
