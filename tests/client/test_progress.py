"""Progress bars: in terminals and notebooks, and where they are asked for."""

import sys
import types

import pytest

from crosscope import Client

from .test_jobs import ScriptedJobs


def pass_for_a_terminal(monkeypatch) -> None:
    """What stderr is during the test."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def run_all(scripted: Client, serve, progress: bool | None) -> None:
    assert len(list(scripted.crosscoder("demo").encode_many(["a", "b"], progress=progress))) == 2
    jobs = ScriptedJobs(2)
    jobs.release()
    with Client(serve(jobs).address) as client:
        client.jobs.get("j1").wait(progress=progress)


def test_no_bars_in_a_pipe(scripted: Client, real: Client, serve, capsys) -> None:
    run_all(scripted, serve, None)
    list(real.crosscoder("demo").latents(limit=None))
    assert capsys.readouterr() == ("", "")


def test_bars_in_a_terminal(scripted: Client, real: Client, serve, capsys, monkeypatch) -> None:
    pass_for_a_terminal(monkeypatch)
    run_all(scripted, serve, None)
    shown = capsys.readouterr().err
    assert "encoding" in shown
    assert "2/2" in shown
    assert "demo" in shown
    assert len(list(real.crosscoder("demo").latents(limit=None))) == 1200
    assert "1200/1200" in capsys.readouterr().err
    list(real.crosscoder("demo").latents(limit=50))
    run_all(scripted, serve, False)
    assert capsys.readouterr() == ("", "")


def test_bars_where_they_are_asked_for(scripted: Client, serve, capsys) -> None:
    run_all(scripted, serve, True)
    assert "2/2" in capsys.readouterr().err


def test_bars_in_a_notebook(monkeypatch, scripted: Client, capsys) -> None:
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # pyright: ignore[reportArgumentType]
    list(scripted.crosscoder("demo").encode_many(["a"]))
    assert "1/1" in capsys.readouterr().err


def test_a_list_can_be_read_by_any_index_with_a_bar(real: Client, capsys, monkeypatch) -> None:
    pass_for_a_terminal(monkeypatch)
    latents = real.crosscoder("demo").latents(limit=700)
    assert latents[699].id == 699
    assert [latent.id for latent in latents[698:]] == [698, 699]
    assert "700/700" in capsys.readouterr().err
    with pytest.raises(IndexError):
        latents[700]
