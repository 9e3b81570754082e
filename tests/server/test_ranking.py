from itertools import pairwise

import numpy as np
import pytest

from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import types_pb2
from crosscope_server.encodings import Encoding
from crosscope_server.errors import InvalidRequest
from crosscope_server.ranking import Rank, TokenRange, rank_latents

# Token:      0 BOS       1 user            2 user          3 turn end
ROWS = [[(7, 9.0)], [(3, 4.0), (5, 1.0)], [(5, 4.0)], [(5, 2.0), (3, 1.0), (2, 0.5)]]
ROLES = [TokenRole.BOS, TokenRole.USER, TokenRole.USER, TokenRole.TURN_END]


def encoding(rows=ROWS, roles=ROLES) -> Encoding:
    n = len(rows)
    return Encoding(
        types_pb2.Tokens(ids=range(n), pieces=[""] * n, roles=[int(role) for role in roles]),  # pyright: ignore[reportArgumentType]
        types_pb2.SparseCode(
            row_starts=np.cumsum([0, *map(len, rows)]).tolist(),
            latents=[latent for row in rows for latent, _ in row],
            activations=[value for row in rows for _, value in row],
        ),
        1.0,
    )


def ranked(rank, *, limit=10, tokens=TokenRange(), **columns) -> list[tuple[int, float]]:  # noqa: B008 (frozen)
    result = rank_latents(encoding(), rank, limit, tokens, **columns)
    return list(zip(result.latents.tolist(), result.scores.tolist(), strict=True))


def test_ranks_by_hand():
    assert ranked(Rank.MAX) == [(7, 9.0), (3, 4.0), (5, 4.0), (2, 0.5)]  # 3 before 5: equal scores by id
    assert ranked(Rank.SUM) == [(7, 9.0), (5, 7.0), (3, 5.0), (2, 0.5)]
    assert ranked(Rank.COUNT) == [(5, 3.0), (3, 2.0), (2, 1.0), (7, 1.0)]
    maximum = np.array([0, 0, 0.5, 8, 0, 5, 0, 90], np.float32)
    shares = ranked(Rank.SHARE_OF_MAX, figures=maximum)
    assert shares == [(2, 1.0), (5, pytest.approx(0.8)), (3, 0.5), (7, pytest.approx(0.1))]


def test_every_figure_of_an_entry():
    result = rank_latents(encoding(), Rank.COUNT, 1, TokenRange())
    assert (result.latents, result.maxima, result.sums, result.counts) == ([5], [4.0], [7.0], [3])
    assert result.peaks == [2]
    assert result.num_latents == 4


def test_the_first_of_equal_peaks_counts():
    result = rank_latents(encoding([[(1, 2.0)], [(1, 2.0)]], [TokenRole.TEXT] * 2), Rank.MAX, 1, TokenRange())
    assert result.peaks == [0]


def test_a_latent_that_never_fired_in_the_analysis_has_no_share_and_comes_last():
    maximum = np.array([0, 0, 1, 8, 0, 5, 0, 0], np.float32)
    shares = ranked(Rank.SHARE_OF_MAX, figures=maximum)
    assert [latent for latent, _ in shares] == [5, 2, 3, 7]
    assert np.isnan(shares[-1][1])


def test_uselessness_weighs_the_largest_activation_and_undefined_ones_come_last():
    uselessness = np.array([0, 0, 12, 1, 0, 2, 0, np.nan], np.float32)
    found = ranked(Rank.USELESSNESS, figures=uselessness)
    assert found[:3] == [(5, 8.0), (2, 6.0), (3, 4.0)]  # 2 · 4, 12 · 0.5, 1 · 4
    assert found[3][0] == 7
    assert np.isnan(found[3][1])


def test_latents_that_are_not_allowed_go_before_the_cut_and_are_counted():
    allowed = np.ones(8, bool)
    allowed[7] = False
    assert ranked(Rank.MAX, limit=2, allowed=allowed) == [(3, 4.0), (5, 4.0)]
    allowed[[3, 0]] = False  # 0 does not fire: nothing was left out of it
    kept = rank_latents(encoding(), Rank.MAX, 1, TokenRange(), allowed=allowed)
    assert (kept.num_latents, kept.num_filtered) == (2, 2)


def test_template_tokens_and_tokens_outside_the_range_do_not_count():
    assert ranked(Rank.SUM, tokens=TokenRange(skip_template=True)) == [(5, 5.0), (3, 4.0)]
    assert ranked(Rank.SUM, tokens=TokenRange(start=2)) == [(5, 6.0), (3, 1.0), (2, 0.5)]
    assert ranked(Rank.SUM, tokens=TokenRange(start=1, end=2)) == [(3, 4.0), (5, 1.0)]
    assert ranked(Rank.SUM, tokens=TokenRange(start=0, end=1, skip_template=True)) == []


def test_tokens_that_training_left_out_are_not_ranked_unless_asked_for():
    marked = encoding()
    marked.tokens.left_out.extend([LeftOut.BOS, LeftOut.KEPT, LeftOut.NORM, LeftOut.KEPT])
    result = rank_latents(marked, Rank.SUM, 10, TokenRange())
    assert list(zip(result.latents.tolist(), result.scores.tolist(), strict=True)) == [(3, 5.0), (5, 3.0), (2, 0.5)]
    assert result.num_left_out == 2
    everything = rank_latents(marked, Rank.SUM, 10, TokenRange(include_left_out=True))
    assert (everything.latents.tolist(), everything.num_left_out) == ([7, 5, 3, 2], 0)
    assert rank_latents(marked, Rank.SUM, 10, TokenRange(start=1)).num_left_out == 1
    assert rank_latents(marked, Rank.SUM, 10, TokenRange(skip_template=True)).num_left_out == 1, "BOS goes anyway"
    assert rank_latents(encoding(), Rank.SUM, 10, TokenRange()).num_left_out == 0, "a worker that does not tell"


def test_the_token_where_an_answer_is_decided_is_no_template_to_skip():
    """<bos> <user> \\n hi <end> <model> \\n sorry <end> <model> \\n: token i fires latent i."""
    header, end = TokenRole.HEADER, TokenRole.TURN_END
    user, assistant = [header, header, TokenRole.USER, end], [header, header, TokenRole.ASSISTANT, end]
    roles = [TokenRole.BOS, *user, *assistant, header, header]
    rows = [[(token, 1.0)] for token in range(len(roles))]
    found = rank_latents(encoding(rows, roles), Rank.MAX, 99, TokenRange(skip_template=True))
    assert found.latents.tolist() == [3, 6, 7, 10]


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (TokenRange(end=5), "token_end: is 5, but the prompt has 4 tokens"),
        (TokenRange(start=4), "token_start: is 4, but must be less than token_end, 4"),
        (TokenRange(start=2, end=2), "token_start: is 2, but must be less than token_end, 2"),
    ],
)
def test_a_range_outside_the_prompt_is_named(tokens, says):
    with pytest.raises(InvalidRequest, match=says):
        rank_latents(encoding(), Rank.MAX, 1, tokens)


def test_agrees_with_a_plain_loop_on_random_codes():
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(23):
        latents = rng.choice(31, rng.integers(0, 9), replace=False)
        rows.append([(int(latent), float(np.float32(rng.random() + 0.1))) for latent in latents])
    roles = rng.choice([int(role) for role in TokenRole], 23)
    result = rank_latents(encoding(rows, roles), Rank.SUM, 100, TokenRange(3, 20, skip_template=True))
    totals: dict[int, list[float]] = {}
    answers = TokenRole.ASSISTANT, TokenRole.REASONING
    decides = [role == TokenRole.HEADER and after in answers for role, after in pairwise(roles)]
    for place, (row, role) in list(enumerate(zip(rows, roles, strict=True)))[3:20]:
        if role not in (TokenRole.BOS, TokenRole.HEADER, TokenRole.TURN_END, TokenRole.PAD) or decides[place]:
            for latent, value in row:
                totals.setdefault(latent, []).append(value)
    expected = sorted(totals, key=lambda latent: (-sum(totals[latent]), latent))
    assert result.latents.tolist() == expected
    assert result.counts.tolist() == [len(totals[latent]) for latent in expected]
    assert result.maxima.tolist() == [np.float32(max(totals[latent])) for latent in expected]
