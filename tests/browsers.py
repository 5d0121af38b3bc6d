"""Debian's Chromium under playwright, and JupyterLab in it: what the browser tests share."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "no Chromium: sudo apt-get install chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
PLAYERS = """async () => {
  const times = [];
  for (const player of document.querySelectorAll('audio[src]')) {
    player.preload = 'metadata'; player.load();
    await new Promise(done => { player.onloadedmetadata = player.onerror = done; setTimeout(done, 5000); });
    times.push(player.duration);
  }
  return times;
}"""
FIGURES = "() => [...document.querySelectorAll('img')].map(i => [i.src.slice(0, 14), i.naturalWidth])"
STATE = """() => {
  const prompts = [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell .jp-InputArea-prompt')]
    .map(p => p.textContent.trim());
  const status = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator')?.dataset.status;
  return { prompts, status };
}"""
BARS = """() => { window.barsSeen = 0; setInterval(() => {
  window.barsSeen = Math.max(window.barsSeen, document.querySelectorAll('.jp-OutputArea .widget-hprogress').length); }, 50); }"""
START_S = 90
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium; yield the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Lab:
    """A JupyterLab server on this machine alone, with settings, kernels and history of its own.

    Attributes
    ----------
    url, token : str
    root : Path
        The folder that it shows.
    """

    def __init__(self, url: str, token: str, root: Path) -> None:
        self.url, self.token, self.root = url, token, root

    def address(self, name: str) -> str:
        return f"{self.url}/lab/tree/{name}?reset&token={self.token}"

    def connected(self, name: str) -> bool:
        """Whether a notebook's kernel is idle with a page at it."""
        with urllib.request.urlopen(f"{self.url}/api/sessions?token={self.token}", timeout=5) as answer:
            kernels = [session["kernel"] for session in json.load(answer) if session["path"] == name]
        return any(kernel["connections"] > 0 and kernel["execution_state"] == "idle" for kernel in kernels)


@contextlib.contextmanager
def jupyter_lab(root: Path, scratch: Path, **environment: str) -> Iterator[Lab]:
    """Start JupyterLab on a folder; yield it; end the server and its kernels."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    for name, value in SETTINGS.items():
        path = scratch / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    search = [str(Path(__file__).parent.parent), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    folders = {
        "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    own = {name: str(scratch / folder) for name, folder in folders.items()}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
        "--LabApp.extension_manager=readonly", "--ServerApp.terminals_enabled=False",
    ]  # fmt: skip
    log = scratch / "server.log"
    with log.open("wb") as written:
        server = subprocess.Popen(
            command, cwd=root, stdout=written, stderr=written,
            env={**os.environ, **own, "PYTHONPATH": os.pathsep.join(search), **environment},
        )  # fmt: skip
    try:
        lab = Lab(f"http://127.0.0.1:{port}", token, root)
        _wait_for(lab, server, log)
        yield lab
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5).close()
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"JupyterLab did not start: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        time.sleep(0.3)


class LiveNotebook:
    """A notebook open in JupyterLab, used as a person does: by menu, mouse and keyboard."""

    def __init__(self, browser: Any, lab: Lab, name: str) -> None:
        self.lab, self.path = lab, lab.root / name
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.failures: list[str] = []
        self.page.on("pageerror", lambda error: self.failures.append(str(error)))
        self.page.goto(lab.address(name), wait_until="domcontentloaded")
        self.ready()
        self.page.evaluate(BARS)

    def close(self) -> None:
        self.context.close()

    def ready(self) -> None:
        """Wait until the page and its kernel are connected; before that its status says idle too, and Run does nothing."""
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        deadline = time.monotonic() + 60
        while not self.lab.connected(self.path.name):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.path.name} got no kernel")
            self.page.wait_for_timeout(300)
        self.page.wait_for_timeout(1000)
        self._wait("status === 'idle'", 60)

    def run_all(self, timeout_s: float) -> None:
        """Choose Run, Run All Cells, and wait until none is running."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_text("Run All Cells", exact=True).click()
        self._wait("prompts.some(p => p !== '[ ]:')", 30)
        self._wait("status === 'idle' && !prompts.includes('[*]:')", timeout_s)

    def _wait(self, condition: str, timeout_s: float) -> None:
        self.page.wait_for_function(f"() => {{ const {{prompts, status}} = ({STATE})(); return {condition}; }}", timeout=timeout_s * 1000)

    @property
    def bars_seen(self) -> int:
        """The most progress bars that were on the page at once."""
        return self.page.evaluate("() => window.barsSeen")

    @property
    def cells(self) -> int:
        return self.page.locator(".jp-Notebook .jp-Cell").count()

    def durations(self) -> list[float]:
        """Seconds of every audio player in the outputs."""
        return self.page.evaluate(PLAYERS.replace("'audio[src]'", "'.jp-OutputArea audio[src]'"))

    def saved(self) -> nbformat.NotebookNode:
        """Save by the menu and read the file."""
        self.page.get_by_role("menuitem", name="File", exact=True).click()
        self.page.get_by_text("Save Notebook", exact=True).click()
        self.page.wait_for_timeout(500)
        self.page.wait_for_function("() => !document.querySelector('.lm-DockPanel .lm-TabBar-tab.jp-mod-dirty')", timeout=30_000)
        return nbformat.read(self.path, 4)

    def errors(self) -> list[str]:
        """Error outputs, cells that never ran, and errors of the page itself."""
        node = self.saved()
        code = [cell for cell in node.cells if cell.cell_type == "code"]
        found = [f"{c.id}: {o.ename}: {o.evalue}" for c in code for o in c.outputs if o.output_type == "error"]
        found += [f"{cell.id} never ran" for cell in code if cell.execution_count is None and cell.source.strip()]
        shown = self.page.locator('.jp-OutputArea [data-mime-type="application/vnd.jupyter.error"]').count()
        return found + [f"{shown} errors shown"] * bool(shown) + self.failures
