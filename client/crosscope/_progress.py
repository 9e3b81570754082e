"""Progress bars in terminals and notebooks."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def open_bar(progress: bool | None, description: str, total: float | None, unit: str) -> "tqdm[Any]":
    """A bar on stderr. `progress` says whether it shows; None shows it in a terminal and in a notebook.

    With the unit "" it shows the share that is done.
    """
    from tqdm.auto import tqdm

    shown = progress if progress is not None else sys.stderr.isatty() or _is_notebook()
    share_only = None if unit else "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    return tqdm(desc=description, total=total, unit=f" {unit}", bar_format=share_only, disable=not shown)


def move_to(bar: "tqdm[Any]", done: float) -> None:
    """Moves a bar to where things stand; never backwards."""
    bar.update(max(done - bar.n, 0))


def _is_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
