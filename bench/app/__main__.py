"""Prints the app's figures beside their targets, and those of an empty Streamlit app.

The app runs on planted artefacts: a crosscoder of 256 latents, one of 73 728, and a worker that answers at once, as in
tests/app. So the figures are the app's own; what the models take comes on top. Every time is a median of rounds.
"""

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from playwright.sync_api import Browser, Page

from bench.app.browser import chromium, fresh, idle, seconds, watched
from bench.rows import ROOT, Figure, Row, Target, heading, provenance, write_json
from bench.timing import Ratio

sys.path.insert(0, str(ROOT / "tests"))

from fixtures_artefacts import write_crosscoder  # pyright: ignore[reportMissingImports]

from tests.app.stack import Stack, answers, until

WIDE = "wide"
WORDS = " ".join(f"word{i}" for i in range(62))
MAIN = '[data-testid="stMain"]'
POINTS = ".points[data-drawn]"
"""The atlas's chart once its points are drawn; the attribute changes with every drawing."""
PAGES = {
    "overview": ("", "tbody tr:visible"),
    "atlas": ("atlas", POINTS),
    "latent": ("latent?latent=7", ".strip .token"),
    "lab": ("lab?shade=latents&text=hello+there", ".strip .token.on"),
    "steer": ("steer", "textarea"),
    "look": ("look", f"{MAIN} h1"),
    "labels": ("labels", "[data-testid=stFileUploader]"),
    "jobs": ("jobs", f"{MAIN} >> text=No job yet"),
    "new job": ("jobs?show=New+job", "textarea"),
}
"""Path of each page, and the first sign of its content."""
STATE = """() => {
    const count = [...document.querySelectorAll("strong")].map((e) => e.innerText).find((t) => t.endsWith("latents"));
    const roots = [...document.querySelectorAll("*")].map((e) => e.shadowRoot).filter(Boolean);
    const points = [document, ...roots].map((root) => root.querySelector(".points")).find(Boolean);
    return [count, points?.dataset.drawn];
}"""
"""How many latents the page says it shows, and how often the chart has been drawn for others."""
SIDEBAR = {"Atlas": "Atlas", "Prompt lab": "Prompt lab", "Jobs": "Jobs", "Overview": "demo"}
"""Links that are walked, and the titles that follow."""


class Report:
    """Rows as they are measured: a line each for people, a line of JSON each for programs."""

    def __init__(self, json_file: Path | None) -> None:
        self.json_file, self.run = json_file, provenance()
        print(heading(self.run))
        print(f"{'what':44}{'seen':>14}{'target':>12}   {'empty Streamlit':>16}")

    def add(
        self,
        case: str,
        ours: Sequence[float],
        unit: str,
        target: float | None,
        empty: Sequence[float] = (),
        **sizes: object,
    ) -> None:
        """Prints and writes one figure: the median of `ours`, beside that of the empty app."""
        ours, empty = list(ours), list(empty)
        pairs = list(zip(ours, empty, strict=False))
        ratio = Ratio.of(*zip(*pairs, strict=True)) if pairs and all(below for _, below in pairs) else None
        row = Row(
            name="app",
            case=case,
            sizes={"rounds": len(ours), "lowest": min(ours), "highest": max(ours), **sizes},
            ours=Figure(statistics.median(ours), unit),
            reference=Figure(statistics.median(empty), unit, "an empty Streamlit app") if empty else None,
            ratio=ratio,
            ratio_is="times as much",
            targets=(Target("ours", "at_most", target),) if target is not None else (),
        )
        seen = f"{statistics.median(ours):.3g} {unit}"
        bound = "" if target is None else f"≤ {target:g} {'met' if row.met() else 'NOT'}"
        beside = f"{statistics.median(empty):.3g} {unit}" if empty else ""
        print(f"{case:44}{seen:>14}{bound:>12}   {beside:>16}", flush=True)
        if self.json_file:
            write_json(self.json_file, row, self.run)


@contextmanager
def empty_app() -> Generator[str]:
    """The address of an empty Streamlit app, served as `streamlit run` does."""
    folder = Path(tempfile.mkdtemp(prefix="cb"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("empty.py")
    flags = ["--server.headless=true", "--browser.gatherUsageStats=false", "--server.fileWatcherType=none"]
    command = [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/_stcore/health"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


@contextmanager
def running(num_latents: int) -> Generator[Stack]:
    """The app in front of a server with both crosscoders, a queue and a planted worker."""
    stack = Stack()
    try:
        stack.plant()
        write_crosscoder(stack.home, WIDE, num_latents, created_at=1_600_000_000.0)
        stack.start_queue()
        stack.start_worker()
        stack.start_server()
        stack.start_app()
        yield stack
    finally:
        stack.close()


def first_visit(report: Report, browser: Browser, url: str, empty: str) -> None:
    """Bytes of a first visit, and until content."""
    sizes, times, largest, hosts = [], [], {}, {}
    for name, address, sign in (("ours", url, "tbody tr:visible"), ("empty", empty, f"{MAIN} h1")):
        context = fresh(browser)
        page, traffic = watched(context)
        times.append(seconds(partial(opened, page, address, sign)))
        idle(page)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1000)
        sizes.append(traffic.size_bytes / 1e6)
        largest[name], hosts[name] = traffic.largest(6), traffic.hosts - {"127.0.0.1"}
        context.close()
    report.add("first visit, bytes", sizes[:1], "MB", 2, sizes[1:], largest=largest)
    report.add("first visit, until content", times[:1], "s", None, times[1:])
    report.add("first visit, other hosts asked", [len(hosts["ours"])], "hosts", 0, [len(hosts["empty"])])
    for name, files in largest.items():
        print(f"    {name}: " + ", ".join(f"{file} {size / 1e3:.0f} kB" for file, size in files))


def opened(page: Page, address: str, sign: str) -> None:
    """Opens an address and waits for the sign of its content."""
    page.goto(address)
    page.locator(sign).first.wait_for()


def openings(report: Report, browser: Browser, url: str, empty: str, rounds: int) -> None:
    """Every page opened with a warm cache."""
    context = fresh(browser)
    cases = {name: (f"{url}/{path}", sign) for name, (path, sign) in PAGES.items()}
    cases["atlas, 73 728 latents"] = (f"{url}/atlas?crosscoder={WIDE}", POINTS)
    cases["empty"] = (empty, f"{MAIN} h1")
    took: dict[str, list[float]] = {name: [] for name in cases}
    for counted in [False] + [True] * rounds:
        for name, (address, sign) in cases.items():
            page = context.new_page()
            each = seconds(partial(opened, page, address, sign))
            idle(page)
            page.close()
            if counted:
                took[name].append(each)
    for name in cases:
        if name != "empty":
            target = 2 if "latents" in name else 1.2
            report.add(f"open {name}", took[name], "s", target, took["empty"])
    context.close()


def steps(report: Report, browser: Browser, url: str, empty: str, rounds: int) -> None:
    """Steps within the app: from page to page, from latent to latent, a prompt that is run."""
    context = fresh(browser)
    page, plain = context.new_page(), context.new_page()
    opened(plain, empty, f"{MAIN} h1")
    walk, runs = [], []
    for _ in range(rounds):
        walk += [seconds(partial(stepped, plain, f"to {to}", to)) for to in ("two", "one")]
    for _ in range(rounds):
        before = plain.get_by_text(re.compile(r"^run \d+$")).inner_text()
        runs.append(seconds(partial(pressed, plain, before)))
    plain.close()
    page.bring_to_front()  # a page behind another draws once a second
    opened(page, url, "tbody tr:visible")
    idle(page)
    moves = []
    for counted in [False] + [True] * rounds:
        for label, title in SIDEBAR.items():
            each = seconds(partial(followed, page, label, title))
            idle(page)
            moves += [each] if counted else []
    report.add("in-app navigation", moves, "s", 0.5, walk)
    opened(page, f"{url}/latent?crosscoder={WIDE}&latent=7", ".strip .token")
    idle(page)
    nexts = [rested(page, partial(next_latent, page)) for _ in range(rounds + 1)][1:]
    report.add("next latent", nexts, "s", 0.2, runs)
    opened(page, f"{url}/lab?crosscoder=demo&shade=latents&text=hello", ".strip .token.on")
    idle(page)
    prompts = [rested(page, partial(run_prompt, page, f"start{n} {WORDS}")) for n in range(rounds + 1)][1:]
    report.add("Run until coloured, 64 tokens", prompts, "s", 0.3, runs)
    context.close()


def stepped(page: Page, label: str, title: str) -> None:
    """Follows a link of the empty app."""
    page.get_by_role("link", name=label).click()
    page.locator("h1", has_text=title.capitalize()).wait_for()


def pressed(page: Page, before: str) -> None:
    """Presses the empty app's button until it has run again."""
    page.get_by_role("button", name="Run").click()
    page.wait_for_function("(before) => !document.body.innerText.includes(before)", arg=before)


def followed(page: Page, label: str, title: str) -> None:
    """Follows a link of the sidebar until the page's title stands there."""
    page.locator('[data-testid="stSidebar"]').get_by_role("link", name=label, exact=True).click()
    page.locator("h1", has_text=title).wait_for()


def next_latent(page: Page) -> None:
    """Goes to the next latent, until its title stands there."""
    before = page.locator("h1").inner_text()
    page.get_by_role("button", name="Next").click()
    page.wait_for_function("(before) => document.querySelector('h1').innerText !== before", arg=before)


def rested(page: Page, work: Callable[[], object]) -> float:
    """How long the work takes; then waits until the page is idle."""
    took = seconds(work)
    idle(page)
    page.wait_for_timeout(200)
    return took


def run_prompt(page: Page, text: str) -> None:
    """Types a prompt and runs it, until its tokens are coloured. Typing is not counted by much: it is one event."""
    field = page.locator(f"{MAIN} textarea").first
    field.fill(text)
    page.keyboard.press("Control+Enter")
    page.locator(".strip .token.on", has_text=text.split(" ")[0]).first.wait_for()


def atlas(report: Report, browser: Browser, url: str, rounds: int) -> None:
    """A filter and a box in the atlas of all latents."""
    context = fresh(browser)
    page, traffic = watched(context)
    opened(page, f"{url}/atlas?crosscoder={WIDE}&classes=shared", POINTS)
    idle(page)
    filters, boxes, sent = [], [], 0
    for _ in range(rounds + 1):
        pill = page.get_by_role("button", name="chat-only", exact=True)
        filters.append(seconds(partial(redrawn, page, pill.click)))
        idle(page)
        before = traffic.frames_in
        boxes.append(seconds(partial(redrawn, page, partial(drag, page), "area=")))
        idle(page)
        sent = traffic.frames_in - before
        page.get_by_role("button", name="Clear the area").click()
        page.wait_for_url(lambda address: "area=" not in address)
        idle(page)
    report.add("atlas 73 728, filter until redrawn", filters[1:], "s", 0.7)
    report.add("atlas 73 728, box until redrawn and listed", boxes[1:], "s", 1, bytes_of_a_box=sent)
    context.close()


def redrawn(page: Page, act: Callable[[], object], in_url: str = "") -> None:
    """Acts, and waits until the number of latents above the table is another and the chart is drawn for it."""
    before = page.evaluate(f"({STATE})()")
    act()
    page.wait_for_function(
        f"(before) => {{ const now = ({STATE})(); return now[0] !== before[0] && now[1] !== before[1]; }}", arg=before
    )
    if in_url:
        page.wait_for_url(lambda address: in_url in address)


def drag(page: Page) -> None:
    """Draws a box in the middle of the chart."""
    box = page.locator(POINTS).first.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 120, y - 120)
    page.mouse.down()
    page.mouse.move(x + 120, y + 120, steps=4)
    page.mouse.up()


def hovering(report: Report, browser: Browser, url: str) -> None:
    """What the mouse over tokens and points asks of the server."""
    context = fresh(browser)
    page, traffic = watched(context)
    for path, sign in (("lab?shade=latents&text=" + WORDS.replace(" ", "+"), ".strip .token.on"), ("atlas", POINTS)):
        opened(page, f"{url}/{path}", sign)
        idle(page)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(500)
        before = traffic.requests, traffic.sent
        box = page.locator(sign).first.bounding_box()
        assert box
        for step in range(40):
            page.mouse.move(box["x"] + 5 + 6 * step, box["y"] + 8 + step % 7)
        page.wait_for_timeout(500)
        report.add(f"hover, {path.partition('?')[0]}: calls", [traffic.requests - before[0]], "calls", 0)
        report.add(f"hover, {path.partition('?')[0]}: reruns", [traffic.sent - before[1]], "reruns", 0)
    context.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures everything; returns 0 whether or not targets are met."""
    parser = argparse.ArgumentParser(prog="make bench-app", description="Measure the app in a headless Chromium.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of every time (default: %(default)s)")
    parser.add_argument("--latents", type=int, default=73_728, help="latents of the large crosscoder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line of JSON for every figure to FILE")
    options = parser.parse_args(arguments)
    report = Report(options.json)
    with running(options.latents) as stack, empty_app() as empty, chromium() as browser:
        first_visit(report, browser, stack.url, empty)
        openings(report, browser, stack.url, empty, options.rounds)
        steps(report, browser, stack.url, empty, options.rounds)
        atlas(report, browser, stack.url, options.rounds)
        hovering(report, browser, stack.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
