"""The set of latents that a URL names."""

import numpy as np
import pytest

from crosscope.app.columns import ATLAS_COLUMNS
from crosscope.app.selection import MAX_VERTICES, Selection, inside, on_axis

NAN = float("nan")


def planted() -> dict[str, np.ndarray]:
    columns = {name: np.full(5, 0.5, dtype=np.float32) for name in ATLAS_COLUMNS}
    columns["latent_class"] = np.array([1, 2, 3, 1, 5], dtype=np.float32)
    columns["frequency"] = np.array([1e-2, 1e-3, 1e-4, 1e-5, 0], dtype=np.float32)
    columns["verdict"] = np.array([2, 1, 1, 3, 5], dtype=np.float32)
    columns["specific_to"] = np.array([1, 0, 3, 2, 0], dtype=np.float32)
    columns["nu_err"] = np.array([0.1, 0.3, NAN, 0.15, NAN], dtype=np.float32)
    columns["base_uselessness_single"] = np.array([1, 4, 2, 3, NAN], dtype=np.float32)
    return columns


def ids(**params: list[str]) -> list[int]:
    return Selection.from_params(params).ids(planted()).tolist()


def test_no_params_choose_all_by_base_uselessness_undefined_last() -> None:
    assert ids() == [1, 3, 2, 0, 4]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"classes": ["chat_only"]}, [3, 0]),
        ({"classes": ["chat_only", "dead"]}, [3, 0, 4]),
        ({"verdict": ["weak"]}, [0]),
        ({"verdict": ["supported", "not_judged"]}, [1, 2, 4]),
        ({"specific": ["chat", "each"]}, [2, 0]),
        ({"specific": ["chat", "each"], "verdict": ["supported"]}, [2]),
        ({"ids": ["4, 1,x,-2"], "order": ["id"]}, [1, 4]),
        ({"order": ["verdict"]}, [1, 2, 0, 3, 4]),
        ({"order": ["-verdict"]}, [4, 3, 0, 1, 2]),
        ({"nu_err": ["0.2"]}, [3, 0]),
        ({"nu_err": ["0.12", "0.2"]}, [3]),
        ({"useless": ["2", "3"]}, [3, 2]),
        ({"useless": ["2", "12"]}, [1, 3, 2]),
        ({"freq": ["-3.2"]}, [3, 2]),
        ({"freq": ["-3.5", "-1.5"]}, [1, 0]),
        ({"freq": ["-7", "-3.5"]}, [3, 2]),
        ({"freq": ["-1.5", "-3.5"]}, [1, 0]),
        ({"rel": ["0.6", "0.9"]}, []),
        ({"rel": ["0.6~0.9"]}, []),
        ({"order": ["frequency"]}, [4, 3, 2, 1, 0]),
        ({"order": ["id"]}, [0, 1, 2, 3, 4]),
        ({"area": ["-2.5,0~-1.5,0~-1.5,2~-2.5,2"]}, [0]),
    ],
)
def test_each_condition_holds(params: dict[str, list[str]], expected: list[int]) -> None:
    assert ids(**params) == expected


@pytest.mark.parametrize(
    "params",
    [
        {"classes": ["nonsense"]},
        {"verdict": ["nonsense"]},
        {"specific": [""]},
        {"order": ["specific_to"]},
        {"nu_err": ["nan"]},
        {"nu_err": ["x"]},
        {"order": ["drop table"]},
        {"x": ["id"]},
        {"area": ["1,2"]},
        {"area": ["1,2~a,b~3,4"]},
        {"area": ["inf,0~1,0~1,1"]},
    ],
)
def test_what_cannot_be_read_counts_as_absent(params: dict[str, list[str]]) -> None:
    assert Selection.from_params(params) == Selection()


def test_lowest_frequency_of_the_slider_keeps_latents_below_it() -> None:
    columns = planted()
    columns["frequency"][3] = 1e-9
    assert 3 in Selection.from_params({"freq": ["-7", "-3.5"]}).ids(columns)


def test_points_in_a_concave_polygon() -> None:
    arrow = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (2.0, 1.0), (0.0, 4.0)]
    x = np.array([2.0, 2.0, 0.5, 3.5, 5.0, NAN])
    y = np.array([0.5, 3.0, 2.0, 2.0, 1.0, 1.0])
    assert inside(x, y, arrow).tolist() == [True, False, True, True, False, False]


def test_area_is_read_up_to_twice_the_corners_that_the_plot_writes() -> None:
    corners = [(float(i), float(i * i)) for i in range(2 * MAX_VERTICES)]
    text = "~".join(f"{x},{y}" for x, y in corners)
    assert Selection.from_params({"area": [text]}).area == tuple(corners)
    assert Selection.from_params({"area": [f"{text}~1,2"]}).area == ()


def test_logarithmic_axes_leave_zero_out() -> None:
    values = on_axis("frequency", np.array([0.01, 0.0]))
    assert values[0] == pytest.approx(-2)
    assert np.isnan(values[1])
    assert on_axis("rel_norm", np.array([0.0])).tolist() == [0.0]
