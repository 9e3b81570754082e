"""`python -m crosscope.app`: becomes `streamlit run` with the app's settings.

Settings come from the environment: CROSSCOPE_APP_PORT (8501), CROSSCOPE_APP_HOST (127.0.0.1; a container needs
0.0.0.0), and CROSSCOPE_ADDRESS, which the pages read.
"""

import os
import sys
from pathlib import Path

from crosscope.app.palette import theme_options

DEFAULT_PORT = 8501
DEFAULT_HOST = "127.0.0.1"


def command(port: int, host: str = DEFAULT_HOST) -> list[str]:
    """The command line that serves the app, by default on the loopback interface."""
    options = {
        "server.port": str(port),
        "server.address": host,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "client.showSidebarNavigation": "false",
        **theme_options(),
    }
    script = Path(__file__).with_name("main.py")
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(script), *flags]


def port_from_environment() -> int:
    """CROSSCOPE_APP_PORT as a number; if it is no port, exits with a sentence."""
    text = os.environ.get("CROSSCOPE_APP_PORT", str(DEFAULT_PORT))
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        sys.exit(f"CROSSCOPE_APP_PORT is {text!r}; it must be a port number from 1 to 65535.")
    return int(text)


if __name__ == "__main__":
    argv = command(port_from_environment(), os.environ.get("CROSSCOPE_APP_HOST") or DEFAULT_HOST)
    os.execv(argv[0], argv)
