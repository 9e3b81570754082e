"""What people must be able to read: contrast of colours, figures, text taken literally; and how the app is started."""

import json
import sys
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from crosscope import JobEvent, JobInfo, JobState
from crosscope.app import bars_view, follow, panels, starter, tables, text
from crosscope.app.__main__ import options
from crosscope.app.palette import CLASS_COLOURS, COOL, DARK, HEAT, LIGHT, Theme, channels, contrast
from crosscope.app.scatter_view import ON_TOP, Points, packed
from crosscope.app.settings import read_settings
from crosscope.app.token_view import strip_of_latent
from crosscope_proto.recipe import RecipeError, parse_recipe

AA_TEXT, AA_GRAPHICS = 4.5, 3.0


def mixed(top: str, bottom: str, share: float) -> str:
    pairs = zip(channels(top), channels(bottom), strict=True)
    return "#" + "".join(f"{round(255 * (share * a + (1 - share) * b)):02x}" for a, b in pairs)


def test_contrast_of_black_and_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_text_can_be_read_on_both_themes() -> None:
    for theme, ink in product((LIGHT, DARK), ("text", "muted", "primary")):
        for paper in (theme.background, theme.surface):
            assert contrast(getattr(theme, ink), paper) >= AA_TEXT, (ink, paper)


@pytest.mark.parametrize(("name", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_tokens_can_be_read_at_every_activation(name: str, theme: Theme) -> None:
    for share in np.linspace(0, 1, 11):
        for colour in (HEAT, COOL):
            assert contrast(theme.text, mixed(colour[name], theme.background, float(share))) >= AA_TEXT


def test_classes_can_be_seen_on_both_themes() -> None:
    for name in ("chat_only", "base_only", "shared", "other"):
        for theme in (LIGHT, DARK):
            assert contrast(CLASS_COLOURS[name], theme.background) >= AA_GRAPHICS, name


def test_an_estimate_shows_its_error_where_it_has_one() -> None:
    assert text.with_error(0.1234, 0.0123) == "0.123 ± 0.012"
    assert text.with_error(0.1234, float("nan")) == "0.123"


def test_text_from_elsewhere_is_never_markup() -> None:
    assert text.plain("<b>*x*</b> `y` [a](b)") == r"\<b\>\*x\*\</b\> \`y\` \[a\]\(b\)"


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("/home/u/.crosscope/jobs/12/trained: kept", "…/jobs/12/trained: kept"),
        ("no worker answers at unix:/run/crosscope/worker; start one", "no worker answers at …/worker; start one"),
        ("'/srv/data/x.parquet' is missing", "'…/x.parquet' is missing"),
        ("read and/or write 3/4 at localhost:50051, see https://a.b/c/d", None),
        ("/data/mine.jsonl is missing", None),
    ],
)
def test_folders_of_the_server_are_not_shown(sentence: str, shown: str | None) -> None:
    assert text.without_paths(sentence, "path: /data/mine.jsonl") == (shown or sentence)


def test_a_value_at_the_floor_of_the_analysis_says_so() -> None:
    assert text.number(11.5129, floor=11.51293) == "≥ 11.5"
    assert text.number(11.4, floor=11.51293) == "11.4"
    assert tables.figures(np.array([1.0, np.nan, 11.5129]), floor=11.51293) == ["1", "–", "≥ 11.5"]


def test_recipe_that_a_person_starts_from() -> None:
    written = "# mine\nkind: crosscoder\nname: demo\nlayer: 2\n"
    assert starter.of_published(written, {}) == written.replace("demo", starter.NAME)
    with pytest.raises(RecipeError, match="layer"):
        parse_recipe(starter.FORM)
    assert starter.of_published("", {}) == starter.FORM


def job(**changes: Any) -> JobInfo:
    record = JobInfo("1", "crosscoder", "x", JobState.RUNNING, 0, (), "load", 0.0, "", 1, 0, 0, 0, {}, {}, "", "")
    return replace(record, **changes)


def test_progress_of_a_job_is_the_servers() -> None:
    assert panels.done(job(total_fraction=0.25, fraction=0.9)) == 0.25
    assert panels.done(job(state=JobState.SUCCEEDED)) == 1.0


def test_a_failed_job_is_a_line_in_a_list_and_an_error_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Streamlit leaves its own script as the main module, which processes that are started later would run.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def page() -> None:
        from crosscope import JobState
        from crosscope.app import panels
        from tests.app.test_reading import job

        failed = job(state=JobState.FAILED, message="no file /srv/private/x.jsonl")
        panels.job_line(failed)
        panels.job_progress(failed)

    shown = AppTest.from_function(page).run()
    assert [line.value for line in shown.markdown] == ["**x** · crosscoder · failed"] * 2
    assert len(shown.error) == 1
    assert "private" not in shown.error[0].value


def test_strip_of_one_latent_has_a_row_a_token() -> None:
    strip = strip_of_latent(["a", "b", "c", "d"], [1] * 4, 7, [1, 3], [0.5, 2.0])
    assert strip.row_starts == [0, 0, 1, 1, 2]
    assert strip.latents == [7, 7]


def test_histogram_counts_living_latents_in_class_colours() -> None:
    bars = bars_view.relative_norms(np.array([0.01, 0.5, 0.5, 0.99, 0.5]), np.array([2, 3, 3, 1, 5]))
    counted = {series.name: sum(count for _, _, count, _ in series.bars) for series in bars.series}
    assert counted == {"chat-only": 1, "base-only": 1, "shared": 2}
    assert bars.series[0].bars[0][3] == "0.98~1.00"


def test_columns_of_the_scatter_plot_travel_packed() -> None:
    columns = {"frequency": np.array([0.1, 0.0, 0.01]), "base_uselessness_single": np.array([1.0, 2.0, np.nan])}
    columns |= {"latent_class": np.array([1, 3, 4]), "specific_to": np.array([0, 0, 1])}
    points = Points("demo v1", np.ones(3, dtype=bool), "frequency", "base_uselessness_single", "frequency")
    assert points.placed(columns).tolist() == [True, False, False]
    head, _, values = packed("demo v1", ["frequency"], columns).partition(b"\n")
    assert json.loads(head) == {"version": "demo v1", "columns": ["frequency", ON_TOP], "count": 3}
    found = np.frombuffer(values, "<f4").reshape(2, 3)
    assert found[0].tolist() == pytest.approx([0.1, 0.0, 0.01])
    assert found[1].tolist() == [1, 0, 1]  # chat-only by class, and specific to chat by what is measured


def test_figures_of_a_job_line_up_by_step() -> None:
    events = [
        JobEvent("1", 0, "train", 0, "", 10, {"loss": 2.0}),
        JobEvent("2", 0, "train", 0, "said", 0, {}),
        JobEvent("3", 0, "train", 0, "", 20, {"loss": 1.0, "l0": 9.0}),
    ]
    steps, series = follow.series(events)
    assert steps == [10, 20]
    assert series["loss"].tolist() == [2.0, 1.0]
    assert np.isnan(series["l0"][0])


def test_app_listens_on_loopback_and_reports_nothing() -> None:
    expected = {"server.port": 8600, "server.address": "127.0.0.1", "browser.gatherUsageStats": False}
    assert expected.items() <= options(read_settings({"CROSSCOPE_APP_PORT": "8600"})).items()
