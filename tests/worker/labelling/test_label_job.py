"""The job that labels, against a real HTTP server whose answers follow rules: scores are worked out by hand."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_endpoint import Endpoint, completion, run_endpoint
from fixtures_labelled import WORDS, write_planted

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.label_specs import explaining_cost, judging_cost
from crosscope_proto.labels import MadeLabels, labels_path, parse_labels
from crosscope_proto.recipe import LabelRecipe, parse_recipe
from crosscope_worker.addresses import AddressError
from crosscope_worker.jobs.retention import retry_hint
from crosscope_worker.labelling import prompts
from crosscope_worker.labelling.errors import LabelError
from crosscope_worker.labelling.examples import Window
from crosscope_worker.recipes.label import make_labels
from crosscope_worker.work import Cancelled, LostClaim, Workspace, silent

HELD_OUT, SHOWN = 6, 4
DETECTION = {"detection": (1 + 1 / 4) / 2, "detection_n": 10.0}
DETECTION |= {"detection_se": math.sqrt(7 / 8 * 1 / 8 / 6 + 2 / 6 * 4 / 6 / 4) / 2}
FUZZING = {"fuzzing": 1.0, "fuzzing_n": 6.0, "fuzzing_se": math.sqrt(2 * (4 / 5 * 1 / 5 / 3)) / 2}
"""All 6 held-out texts have the word, and so have 3 of 4 silent ones. Of the marks 3 are right and 3 are wrong."""
PER_LATENT = 1 + 2 + 2
"""A label; 10 texts and 6 markings, 5 a request."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with run_endpoint() as running:
        yield running


@pytest.fixture
def manifest(tmp_path: Path) -> CrosscoderManifest:
    return write_planted(tmp_path)


def recipe(endpoint: Endpoint, rest: str = "", explainer: str = "") -> LabelRecipe:
    found = parse_recipe(f"""
kind: label
name: planted
explainer: {{by: endpoint, address: {endpoint.address}, model: rules, concurrency: 2, {explainer}}}
examples: {{shown: {SHOWN}, held_out: {HELD_OUT}}}
{rest}
""")
    assert isinstance(found, LabelRecipe)
    return found


def workspace(home: Path, job: str = "job-1", fence=lambda: None, **more) -> Workspace:
    (folder := home / "jobs" / job).mkdir(parents=True, exist_ok=True)
    return Workspace(home, folder, fence, **more)


def delivered(home: Path, job: str = "job-1") -> MadeLabels:
    return parse_labels(Path(labels_path(home, job)).read_bytes())


def test_labels_and_scores_are_those_worked_out_by_hand(
    tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint
):
    said: list[tuple[str, float, str]] = []
    space = workspace(tmp_path)
    made = make_labels(
        recipe(endpoint), space, lambda stage, share, message="", **_: said.append((stage, share, message))
    )
    assert made == delivered(tmp_path) == parse_labels((space.folder / "labels.json").read_bytes())
    assert (made.crosscoder, made.weights, made.num_latents) == ("planted", manifest.weights_id, len(WORDS))
    assert (made.author, made.job, made.unlabelled) == ("rules", "job-1", {})
    assert {each.latent: each.text for each in made.labels} == dict(enumerate(WORDS[:-1])), "the last is not judged"
    for each in made.labels:
        assert each.scores == pytest.approx(DETECTION | FUZZING)
    assert len(endpoint.prompts) == 5 * PER_LATENT
    assert made.summary == "5 of 5 latents labelled."
    assert made.notes == (f"{5 * PER_LATENT} requests, 2500 tokens of prompts, 175 of answers.",)
    assert [stage for stage, *_ in said if stage == "label"]
    first = next(message for stage, _, message in said if stage == "label")
    assert first.startswith(f"labelling 5 latents takes {5 * PER_LATENT} requests with about ")
    assert endpoint.bodies[0]["model"] == "rules"
    assert endpoint.bodies[0]["temperature"] == 0
    assert "authorization" not in endpoint.headers[0]


def test_what_is_shown_is_never_what_is_judged(tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint):
    make_labels(recipe(endpoint, "latents: {ids: [0]}", "per_request: 50"), workspace(tmp_path), silent)
    explained, detection, fuzzing = endpoint.prompts

    def texts(prompt: str) -> list[str]:
        lines = [line.partition(": ")[2] for line in prompt.splitlines() if line[:1].isdigit() and ': "' in line]
        return [json.loads(line).replace("<<", "").replace(">>", "") for line in lines]

    assert (len(texts(explained)), len(texts(detection)), len(texts(fuzzing))) == (SHOWN, 10, 6)
    assert not set(texts(explained)) & (set(texts(detection)) | set(texts(fuzzing)))
    assert "<<" not in detection
    assert set(texts(fuzzing)) < set(texts(detection))
    assert explained.count("<< fox>>") == SHOWN, "the weak activation behind the word is not marked"
    assert "<< stands>>" not in fuzzing, "a wrong mark stands where the latent is silent"


def test_an_endpoint_in_trouble_is_asked_again(tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint):
    trouble = [
        (429, {"Retry-After": "0"}, {"error": "slow down"}),
        (503, {"Retry-After": "0"}, b"<html>"),
        (200, {"Retry-After": "0"}, b"not JSON"),
        (200, {"Retry-After": "0"}, {"choices": []}),
        completion("I have thought about it."),  # cannot be read: asked again, with the answer
    ]
    endpoint.before = lambda number, _: trouble[number] if number < len(trouble) else None
    made = make_labels(recipe(endpoint, "latents: {ids: [1]}"), workspace(tmp_path), silent)
    (label,) = made.labels
    assert (label.text, label.scores) == ("bread", pytest.approx(DETECTION | FUZZING))
    assert len(endpoint.prompts) == PER_LATENT + len(trouble)
    assert endpoint.prompts[5].startswith("This has no line that begins with LABEL:")
    assert made.notes[0].startswith(f"{PER_LATENT + len(trouble)} requests")
    after = "HTTP 429: 1, HTTP 503: 1, an answer that is no chat completion: 2"
    assert made.notes[-1] == f"Requests that the last attempt repeated, after {after}."


def test_latents_without_a_label_are_counted_by_reason(
    tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint
):
    def before(_: int, prompt: str):
        if "fox" in prompt:
            return completion("I'm sorry, but I can't help with that.")
        if "bread" in prompt:
            return completion(None, refusal="No.")
        if "moon" in prompt and "LABEL" in prompt:
            return 400, {}, {"error": {"message": "the prompt is too long"}}
        if ("harp" in prompt and "JSON list of" in prompt) or "This is no JSON list" in prompt:
            return completion("[1, 0]")  # judges two texts, where more were asked
        return completion("") if "rain" in prompt or "This has no line" in prompt else None

    endpoint.before = before
    made = make_labels(recipe(endpoint), workspace(tmp_path), silent)
    assert made.unlabelled == {
        "the explainer refused": (0, 1),
        "the answer could not be read": (2,),
        "the explainer did not answer": (3,),
    }
    assert [(each.latent, each.text, dict(each.scores)) for each in made.labels] == [(4, "harp", {})]
    said = "the explainer refused: 2, the answer could not be read: 1, the explainer did not answer: 1"
    assert made.summary == f"1 of 5 latents labelled; {said}."
    assert "Texts that were not judged: 16." in made.notes
    assert made.notes[1:3] == ("Labels without a score by detection: 1.", "Labels without a score by fuzzing: 1.")


def test_texts_that_were_not_judged_do_not_count(tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint):
    """The word of latent 0 stands in 6 held-out texts and 3 silent ones; the fourth silent one says dog."""
    endpoint.before = lambda _, prompt: completion("[2]") if " dog" in prompt or "This is no" in prompt else None
    made = make_labels(recipe(endpoint, "latents: {ids: [0]}", "per_request: 1"), workspace(tmp_path), silent)
    smoothed = 7 / 8 * 1 / 8 / 6 + 1 / 5 * 4 / 5 / 3
    detection = {"detection": 0.5, "detection_n": 9.0, "detection_se": math.sqrt(smoothed) / 2}
    assert made.labels[0].scores == pytest.approx(detection | FUZZING)
    assert "Texts that were not judged: 1." in made.notes
    assert len(endpoint.prompts) == 1 + 10 + 2 + 6, "the text that could not be read was asked three times"


def test_a_budget_is_held(tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint):
    with pytest.raises(LabelError, match=r"5 latents takes 25 requests .* budget.requests is 24; raise it to 25"):
        make_labels(recipe(endpoint, "budget: {requests: 24}"), workspace(tmp_path), silent)
    with pytest.raises(LabelError, match=r"budget.tokens is 100; raise it to \d+, or label fewer"):
        make_labels(recipe(endpoint, "budget: {tokens: 100}"), workspace(tmp_path), silent)
    assert endpoint.prompts == [], "nothing was asked"
    # What is repeated counts, so that a job that was within its budget may reach it.
    endpoint.before = lambda number, _: (500, {"Retry-After": "0"}, {}) if number < 10 else None
    explainer = "retries: 20"
    made = make_labels(recipe(endpoint, "budget: {requests: 25}", explainer), workspace(tmp_path), silent)
    assert len(endpoint.prompts) == 25
    assert made.unlabelled["the budget was reached"]
    assert len(made.labels) + len(made.unlabelled["the budget was reached"]) == 5


def test_an_endpoint_that_is_down_fails_the_job(tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint):
    endpoint.before = lambda *_: (500, {"Retry-After": "0"}, {})
    with pytest.raises(LabelError, match=r"did not answer for 5 latents in a row: .*: HTTP 500, 2 times"):
        make_labels(recipe(endpoint, explainer="retries: 1"), workspace(tmp_path), silent)
    endpoint.before = lambda *_: None
    made = make_labels(recipe(endpoint), workspace(tmp_path), silent)
    assert len(made.labels) == 5, "a retry goes on"


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint, monkeypatch, caplog
):
    key = "sk-very-secret"
    of = recipe(endpoint, "latents: {ids: [0]}", "key: RULES_API_KEY")
    with pytest.raises(LabelError, match="no variable RULES_API_KEY"):
        make_labels(of, workspace(tmp_path), silent)
    monkeypatch.setenv("RULES_API_KEY", key)
    said: list[str] = []
    make_labels(of, workspace(tmp_path), lambda *given, **more: said.append(f"{given} {more}"))
    assert {each["authorization"] for each in endpoint.headers} == {f"Bearer {key}"}
    endpoint.before = lambda *_: (401, {}, {"error": f"wrong key {key}"})
    with pytest.raises(LabelError, match="refuses the key: HTTP 401, asked with the key in RULES_API_KEY") as caught:
        make_labels(of, workspace(tmp_path, "job-2"), silent)
    endpoint.before = lambda *_: (400, {}, {"error": f"wrong field beside {key}"})
    made = make_labels(of, workspace(tmp_path, "job-3"), silent)
    assert made.unlabelled == {"the explainer did not answer": (0,)}
    assert "wrong field beside …" in caplog.text
    for path in tmp_path.rglob("*.json*"):
        assert key not in path.read_text("utf-8")
    assert key not in f"{said} {caught.value} {caplog.text}"


def test_other_machines_are_called_only_if_the_operator_says_so(tmp_path: Path, manifest: CrosscoderManifest):
    far = Endpoint(address="http://192.0.2.1/v1")
    with pytest.raises(AddressError, match=r"may not call http://192.0.2.1/v1.*CROSSCOPE_WORKER_LABEL_ADDRESSES"):
        make_labels(recipe(far), workspace(tmp_path), silent)
    allowed = workspace(tmp_path, label_addresses=("http://192.0.2.1",))
    with pytest.raises(LabelError, match="there is no version v9 of the crosscoder 'planted'"):
        make_labels(recipe(far, "version: v9"), allowed, silent)
    named_like_it = Endpoint(address="http://192.0.2.1.example.org/v1")
    with pytest.raises(AddressError):
        make_labels(recipe(named_like_it), allowed, silent)


def test_a_job_goes_on_where_it_stood(tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint):
    def stop_later(_stage: str, _share: float, _message: str = "", **more) -> None:
        if more.get("step") == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        make_labels(recipe(endpoint), workspace(tmp_path), stop_later)
    first = list(endpoint.answered)
    answers = workspace(tmp_path).checkpoints / "answers.jsonl"
    kept = answers.read_bytes()
    answers.write_bytes(kept + kept[: len(kept) // 50])  # a kill in the middle of a line
    folder = workspace(tmp_path).folder
    assert retry_hint(folder) == "crosscope retry job-1 asks only what was not answered."
    made = make_labels(recipe(endpoint), workspace(tmp_path), silent)
    assert {each.text for each in made.labels} == set(WORDS[:-1])
    for each in made.labels:
        assert each.scores == pytest.approx(DETECTION | FUZZING)
    again = [prompt for prompt in endpoint.answered[len(first) :] if prompt in first]
    assert len(again) <= 2, "at most what two threads were asking when the job was stopped"
    num_asked = len(endpoint.prompts)
    assert make_labels(recipe(endpoint), workspace(tmp_path), silent).labels == made.labels
    assert len(endpoint.prompts) == num_asked, "an attempt that comes late asks nothing"


def test_an_attempt_that_lost_its_claim_hands_nothing_over(
    tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint
):
    def lost() -> None:
        raise LostClaim

    with pytest.raises(LostClaim):
        make_labels(recipe(endpoint, "latents: {ids: [0]}"), workspace(tmp_path, fence=lost), silent)
    assert not Path(labels_path(tmp_path, "job-1")).exists()


@pytest.mark.parametrize(
    ("latents", "sentence"),
    [
        ("{ids: [6]}", "names latent 6, but the dictionary has 6, 0 to 5"),
        ("{specific_to: base}", "no living latent is specific to base and of verdict supported"),
        ("{specific_to: null, verdicts: [], classes: [shared]}", "no living latent is of class shared"),
    ],
)
def test_latents_that_cannot_be_chosen(
    latents: str, sentence: str, tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint
):
    with pytest.raises(LabelError, match=sentence):
        make_labels(recipe(endpoint, f"latents: {latents}"), workspace(tmp_path), silent)


def test_the_order_and_the_limit_choose(tmp_path: Path, manifest: CrosscoderManifest, endpoint: Endpoint):
    of = recipe(endpoint, "latents: {specific_to: null, verdicts: [], order_by: num_active, limit: 2}")
    made = make_labels(of, workspace(tmp_path), silent)
    assert {each.latent for each in made.labels} == {4, 5}
    assert made.notes[-1] == "Latents that meet the conditions and lie behind latents.limit: 4."


def test_requests_are_as_long_as_the_estimate_says():
    window = Window(tuple(f" {i:06d}" for i in range(33)), frozenset({3, 9}), frozenset({3, 9}), 1.0)
    spec = recipe(Endpoint("http://127.0.0.1")).explainer
    explained = sum(len(content) for _, content in prompts.explain([window] * 12))
    cost = explaining_cost([len(window.shown)] * 12)
    assert 0.4 * cost.prompt_tokens < explained / 4 <= cost.prompt_tokens
    for measure in ("detection", "fuzzing"):
        asked = sum(len(content) for _, content in prompts.judge(measure, "x" * 200, [window.shown] * 5))
        cost = judging_cost(spec, [len(window.shown)] * 5)
        assert (cost.requests, asked / 4 <= cost.prompt_tokens) == (1, True)


@pytest.mark.parametrize(
    ("answer", "strict", "loose"),
    [
        ("I think.\nLABEL: refusals", "refusals", "refusals"),
        ('**LABEL:** "Refusals."', "Refusals", "Refusals"),
        ("label: a\nLABEL: b", "b", "b"),
        ("LABEL:", None, None),
        ("LABEL: …", None, None),
        (f"LABEL: {'x' * 201}", None, f"{'x' * 199}…"),
        ("one\ttwo\u202e", None, "one two"),
        ("\n\n", None, None),
    ],
)
def test_a_label_is_read(answer: str, strict: str | None, loose: str | None):
    assert prompts.read_label(answer, is_strict=True) == strict
    assert prompts.read_label(answer, is_strict=False) == loose


@pytest.mark.parametrize(
    ("answer", "judged"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("as in [0, 0, 0]: so\n[1,0,1]", [True, False, True]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ("[1 0 1]", None),
        ("1, 0, 1", None),
    ],
)
def test_judgements_are_read(answer: str, judged: list[bool] | None):
    assert prompts.read_judgements(answer, 3) == judged


def test_marks_of_a_text_are_not_ours():
    window = Window(("a", " <<b", ">>", " c"), frozenset({1, 2}), frozenset({1, 2}))
    assert window.shown == "a<< < <b> >>> c"
    assert window.with_marks([3]).shown == "a < <b> ><< c>>"
