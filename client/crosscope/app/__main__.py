"""`python -m crosscope.app`: serves the app with its settings (settings.py), which come from the environment."""

import gc
import importlib
import os
import secrets
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from crosscope.app.files import Compressed
from crosscope.app.guard import PARAMETER, Guard
from crosscope.app.palette import theme_options
from crosscope.app.settings import AppSettings, Login, SettingsError, read_settings
from crosscope_proto.ending import WRONG_SETTINGS

LOADED_AHEAD = ("pandas", "crosscope.app.frame")
"""Modules that the first visitor would wait for: what Streamlit's widgets load when they are first drawn, all pages."""


def options(settings: AppSettings) -> dict[str, object]:
    """Streamlit's options."""
    tls = settings.tls and {"server.sslCertFile": str(settings.tls[0]), "server.sslKeyFile": str(settings.tls[1])}
    return {
        "server.port": settings.port,
        "server.address": settings.host,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.enableWebsocketCompression": True,
        "browser.gatherUsageStats": False,
        "logger.hideWelcomeMessage": True,  # at a wildcard address it would ask a host outside for this machine's own
        "runner.magicEnabled": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.showSidebarNavigation": False,
        **theme_options(),
        **(tls or {}),
        **({"secrets.files": [str(settings.oidc_secrets)]} if settings.oidc_secrets else {}),
    }


def main() -> None:
    """Serves until it is stopped; a setting that makes no sense is one sentence, and exit code WRONG_SETTINGS."""
    try:
        settings = read_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(WRONG_SETTINGS)
    key = settings.key
    if settings.login is Login.KEY and key is None:
        key = os.environ["CROSSCOPE_APP_KEY"] = secrets.token_urlsafe(32)  # the pages read it there
        scheme = "https" if settings.tls else "http"
        sys.stderr.write(f"Open {scheme}://{settings.host}:{settings.port}/?{PARAMETER}={key}\n")
    guard = Middleware(Guard, hosts=settings.hosts, key=key if settings.login is Login.KEY else None)
    script = Path(__file__).with_name("main.py").resolve()
    app = st.App(script, middleware=[guard, Middleware(Compressed)], lifespan=loaded)
    app.run(config=options(settings))


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
    main()
