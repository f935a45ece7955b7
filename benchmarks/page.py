"""The page of a model that translates: the time of a warm translation, and memory over many requests.

    python benchmarks/page.py runs/quickstart --rows results/page.jsonl     # a minute

With chromium and selenium also the first paint.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import environment

from transformer.command_line import Parser, run, whole
from transformer.config import UserError

TEXTS = ("The concert is on November 2nd, 2030.", "The course lasts eighty-eight weeks.", "He paid 45 dollars.")
MEDIAN_OF = 20


def translated(port: int, texts: Sequence[str], count: int) -> Iterator[float]:
    """The seconds of each of `count` translations, every other one with its search."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for i in range(count):
        request = {"source": texts[i % len(texts)], "search": i % 2 == 0}
        began = time.monotonic()
        connection.request("POST", "/api/1/translate", json.dumps(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise UserError(f"the server answers {response.status} ({content.decode()}); give a model that translates")
        yield time.monotonic() - began


def memory(process: int) -> int:
    """The memory of a process in MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[0]) // 1024


def first_paint(address: str) -> float | None:
    """The median time to the first paint in chromium, in milliseconds; None without chromium and selenium."""
    try:
        from selenium import webdriver
    except ImportError:
        return None
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    times, script = [], "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        for _ in range(MEDIAN_OF):
            opened.get("about:blank")
            opened.get(address)
            while (found := opened.execute_script(script)) is None:
                time.sleep(0.05)
            times.append(found)
    return statistics.median(times)


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/page.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("workdir", help="the workdir of a model that translates")
    parser.add_argument("--texts", nargs="+", default=TEXTS, help="what is translated (default: the quickstart's kind)")
    parser.add_argument("--requests", type=whole(2 * MEDIAN_OF), default=1000, help="default 1000")
    parser.add_argument("--rows", metavar="FILE", help="a row is added to this file")
    args = parser.parse_args(arguments)
    command = [sys.executable, "-m", "transformer", "page", args.workdir, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            if not address:
                raise UserError("the server did not start; its message stands above")
            port = int(address.rsplit(":", 1)[1].strip("/"))
            list(translated(port, args.texts, len(args.texts) * 2))  # compiles
            times = list(translated(port, args.texts, MEDIAN_OF))
            before = memory(server.pid)
            list(translated(port, args.texts, args.requests))
            found = {
                "translation_ms": round(1000 * statistics.median(times), 1),
                "memory_mib": before,
                "memory_mib_after": memory(server.pid),
                "requests": args.requests,
                "first_paint_ms": first_paint(address),
            }
        finally:
            server.terminate()
    row = {"part": "page", "model": Path(args.workdir).name, **found}
    print(json.dumps(Rows(args.rows).add(row) if args.rows else row))


if __name__ == "__main__":
    run(main)
