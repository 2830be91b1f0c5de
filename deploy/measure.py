"""Measures what deploy/sizing.md says of one process, with the real program and SQLite.

    python3 deploy/measure.py target/release/granary [PURCHASES]

It crops with the built-in engine, which costs nothing, in a folder of its own, and leaves nothing behind.
Every crop is of one picture at another size, so that every request is a purchase.
"""

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PICTURE = (Path(__file__).parent.parent / "tests/images/rocket.jpg").read_bytes()
PATH = "/api/image/editing/image-cropping"
BOUNDARY = "measure"
# At a time, as clients do; the engine does one after the other on each core.
CLIENTS = 4
CONNECTIONS = 1000


class Granary:
    def __init__(self, program, folder):
        environment = {
            "PATH": os.environ["PATH"],
            "GRANARY_SERVER_LISTEN": "127.0.0.1:0",
            "GRANARY_SERVER_ADMIN_LISTEN": "127.0.0.1:0",
            "GRANARY_SERVER_DRAIN_GRACE": "0s",
            "GRANARY_SERVER_ANSWER_WITHIN": "10m",
            "GRANARY_STORE_PATH": f"{folder}/store",
            "GRANARY_STATE_PATH": f"{folder}/state",
        }
        self.process = subprocess.Popen(
            [os.path.abspath(program)], env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for line in self.process.stderr:
            said = json.loads(line) if line.startswith(b"{") else {}
            fields = said.get("fields", said)
            if fields.get("message") == "listening":
                self.public, self.admin = fields["public"], fields["admin"]
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def status(self, name):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metric(self, series):
        connection = http.client.HTTPConnection(self.admin)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return float(re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)[1])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


def form(width, height):
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode(), PICTURE]
    for name, value in (("width", width), ("height", height)):
        parts.append(f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    return b"".join([*parts, f"\r\n--{BOUNDARY}--\r\n".encode()])


def crop(connections, address, number):
    if not hasattr(connections, "mine"):
        connections.mine = http.client.HTTPConnection(address, timeout=600)
    width, height = 100 + number % 50, 100 + number // 50
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connections.mine.request("POST", PATH, form(width, height), kind)
    answer = connections.mine.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return len(body)


def size_below(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)


def say(what, figure, unit=""):
    print(f"{what:<58}{figure:>12,.0f} {unit}")


def main(program, purchases):
    with tempfile.TemporaryDirectory() as folder:
        granary = Granary(program, folder)
        say("resident at rest", granary.status("VmRSS") / 1024, "KiB")
        say("descriptors at rest", granary.descriptors())
        resident, open_before = granary.status("VmRSS"), granary.descriptors()
        idle = [socket.create_connection(granary.public.rsplit(":", 1)) for _ in range(CONNECTIONS)]
        # The kernel has them at once; the program has each when it has accepted it.
        while granary.descriptors() < open_before + CONNECTIONS:
            time.sleep(0.01)
        say("resident for each open connection", (granary.status("VmRSS") - resident) / CONNECTIONS, "bytes")
        for connection in idle:
            connection.close()
        connections = threading.local()
        before = granary.status("VmRSS")
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda number: crop(connections, granary.public, number), range(purchases)))
        say("purchases", purchases)
        say("an answer", sum(answers) / purchases, "bytes")
        cached = granary.metric('granary_space_used_bytes{space="cache"}')
        say("an answer in the memory cache, as counted", cached / purchases, "bytes")
        say("resident after the purchases", granary.status("VmRSS") / 1024, "KiB")
        say("resident at the most", granary.status("VmHWM") / 1024, "KiB")
        say("resident, grown by", (granary.status("VmRSS") - before) / 1024, "KiB")
        granary.stop()
        ledger = Path(folder, "state/ledger.sqlite")
        say("the ledger for each purchase", ledger.stat().st_size / purchases, "bytes")
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as book:
            for (table,) in book.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall():
                (rows,) = book.execute(f'SELECT count(*) FROM "{table}"').fetchone()
                if rows >= purchases:
                    say(f"rows in {table} for each purchase", rows / purchases)
        for kind in ("results", "records"):
            count, size = size_below(f"{folder}/store/{kind}")
            say(f"{kind}, files for each purchase", count / purchases)
            say(f"{kind}, a file", size / max(count, 1), "bytes")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
