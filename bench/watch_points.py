"""How does `groundup watch` do with a run of ten million steps? Time to the first curve, an update, a zoom; memory.

python bench/watch_points.py [--steps 10000000] [--browser]
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--browser", action="store_true", help="also draw it in Chromium, through Playwright")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "long" / "pretrain" / "metrics.jsonl"
        metrics.parent.mkdir(parents=True)
        write(metrics, 1, options.steps)
        print(f"{options.steps:,} steps, {metrics.stat().st_size / 1e9:.2f} GB of metrics")
        command = [sys.executable, "-m", "groundup", "watch", folder, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        found = re.search(r"http://\S+/", server.stdout.readline())
        assert found
        try:
            measure(found[0], metrics, options.steps, server.pid)
            if options.browser:
                in_a_browser(found[0], metrics, options.steps)
        finally:
            server.terminate()
            server.wait()


def write(path: Path, first: int, last: int) -> None:
    with open(path, "a") as stream:
        for step in range(first, last + 1):
            noise = (step * 2654435761 % 2**32) / 2**33
            stream.write(
                f'{{"step": {step}, "loss": {2 + 6 / step**0.3 + noise:.6f}, "grad_norm": {0.5 + noise:.6f}, '
                f'"learning_rate": {1e-3 * (1 - step / 2e7):.9f}, "tokens": {8192 * step}, '
                f'"seconds": {step * 0.27:.3f}, "flops": {step * 123456789012}}}\n'
            )


def measure(address: str, metrics: Path, steps: int, process: int) -> None:
    def ask(path: str) -> Any:
        with urllib.request.urlopen(address + path) as answer:
            return json.loads(answer.read())

    run = ask("api/runs")["runs"][0]["id"]
    began = time.perf_counter()
    found = ask(f"api/curves/{run}?width=800")
    print(f"first curve, of the first {found['last']['step']:,.0f} steps: {time.perf_counter() - began:.2f} s")
    while found["share_read"] < 1:
        found = ask(f"api/curves/{run}?width=800")
    print(f"all read: {time.perf_counter() - began:.1f} s")

    def timed(what: str, path: str) -> None:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            found = ask(path)
            took.append(time.perf_counter() - began)
        points = len(found["metrics"]["loss"]["x"]) if "metrics" in found else 0
        print(f"{what}: {sorted(took)[2] * 1000:.0f} ms, {points} points")

    timed("all of it", f"api/curves/{run}?width=800")
    timed("a tenth", f"api/curves/{run}?width=800&low={steps // 2}&high={steps * 6 // 10}")
    timed("a thousand steps", f"api/curves/{run}?width=800&low={steps // 2}&high={steps // 2 + 1000}")
    timed("nothing new", f"api/curves/{run}?width=800&since={found['version']}")
    write(metrics, steps + 1, steps + 10)
    began = time.perf_counter()
    assert ask(f"api/curves/{run}?width=800")["last"]["step"] == steps + 10
    print(f"ten new steps: {(time.perf_counter() - began) * 1000:.0f} ms")
    status = Path(f"/proc/{process}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    assert peak
    print(f"memory of the server at its highest: {int(peak[1]) / 1e3:.0f} MB")


def in_a_browser(address: str, metrics: Path, steps: int) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto(address)
        page.locator(".card path.line").first.wait_for()
        print(f"drawn in the browser: {time.perf_counter() - began:.2f} s")
        before = page.locator(".runs small").inner_text()
        write(metrics, steps + 11, steps + steps // 100)
        began = time.perf_counter()
        while page.locator(".runs small").inner_text() == before:
            time.sleep(0.02)
        print(f"new steps seen on the page: {time.perf_counter() - began:.2f} s, of which it waits up to 2 s to ask")
        browser.close()


if __name__ == "__main__":
    main()
