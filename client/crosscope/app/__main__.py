"""`python -m crosscope.app`: serves the app with its settings.

Settings come from the environment: CROSSCOPE_APP_PORT (8501), CROSSCOPE_APP_HOST (127.0.0.1; a container needs
0.0.0.0), and CROSSCOPE_ADDRESS, which the pages read.
"""

import gc
import importlib
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from crosscope.app.files import Compressed
from crosscope.app.palette import theme_options

LOADED_AHEAD = ("pandas", "crosscope.app.frame")
"""Modules that the first visitor would wait for: what Streamlit's widgets load when they are first drawn, all pages."""
DEFAULT_PORT = 8501
DEFAULT_HOST = "127.0.0.1"


def options(port: int, host: str = DEFAULT_HOST) -> dict[str, object]:
    """Streamlit's options, by default for the loopback interface."""
    return {
        "server.port": port,
        "server.address": host,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.enableWebsocketCompression": True,
        "browser.gatherUsageStats": False,
        "runner.magicEnabled": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.showSidebarNavigation": False,
        **theme_options(),
    }


def port_from_environment() -> int:
    """CROSSCOPE_APP_PORT as a number; if it is no port, exits with a sentence."""
    text = os.environ.get("CROSSCOPE_APP_PORT", str(DEFAULT_PORT))
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        sys.exit(f"CROSSCOPE_APP_PORT is {text!r}; it must be a port number from 1 to 65535.")
    return int(text)


@asynccontextmanager
async def loaded(_: st.App) -> AsyncGenerator[None]:
    """Loads LOADED_AHEAD before the first visitor comes, and keeps what is loaded out of garbage collections.

    Streamlit collects behind every run, and sends nothing meanwhile; modules never become garbage.
    """
    for name in LOADED_AHEAD:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    yield


if __name__ == "__main__":
    settings = options(port_from_environment(), os.environ.get("CROSSCOPE_APP_HOST") or DEFAULT_HOST)
    script = Path(__file__).with_name("main.py").resolve()
    app = st.App(script, middleware=[Middleware(Compressed)], lifespan=loaded)
    app.run(config=settings)
