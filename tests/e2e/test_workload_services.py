"""Real services keep on working under load, wherever they are taken: one connection, never reset, nothing forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.workload_lab.journey import running, travel
from tests.lab import Lab, rootfs

pytestmark = [*needs.SURVIVAL, pytest.mark.timeout(400)]

PYTHON_SERVICE = """
import http.server, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    count = 0
    lock = threading.Lock()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with Handler.lock:
            Handler.count += 1
            body = b"%d" % Handler.count
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
NODE_SERVICE = """
const http = require('node:http');
let count = 0;
const server = http.createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    const body = String(++count);
    response.writeHead(200, {'Content-Length': body.length});
    response.end(body);
  });
});
server.keepAliveTimeout = 0;
setInterval(() => { globalThis.garbage = Array.from({length: 1000}, (_, n) => ({n})); }, 20);
server.listen(8000, '0.0.0.0');
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def well(report: dict[str, object]) -> None:
    assert report["problem"] == ""
    assert int(str(report["requests"])) > 500


@needs.tool("redis-server")
def test_redis(lab: Lab, tmp_path: Path) -> None:
    command = ["redis-server", "--dir", "/data", "--appendonly", "yes", "--protected-mode", "no"]
    tree = rootfs.redis(tmp_path / "rootfs")
    with running(lab, tree, "--user", "redis", command=command) as address:
        well(travel(lab, "redis", address, 6379))


@needs.tool("nginx")
def test_nginx(lab: Lab, tmp_path: Path) -> None:
    tree = rootfs.nginx(tmp_path / "rootfs")
    with running(lab, tree, command=["nginx"]) as address:
        well(travel(lab, "http", address, 80))


def test_postgresql(lab: Lab, tmp_path: Path) -> None:
    try:
        tree = rootfs.postgresql(tmp_path / "rootfs")
    except rootfs.Missing as missing:
        pytest.skip(f"not installed: {missing}")
    command = ["postgres", "-D", "/data"]
    with running(lab, tree, "--user", "postgres", command=command) as address:
        well(travel(lab, "postgres", address, 5432))


def test_a_python_service(lab: Lab, tmp_path: Path) -> None:
    tree = rootfs.python(tmp_path / "rootfs", files={"/service.py": PYTHON_SERVICE})
    command = ["python3", "-B", "/service.py"]
    with running(lab, tree, "--user", "nobody", command=command) as address:
        well(travel(lab, "count", address, 8000))


@needs.tool("node")
def test_a_node_service(lab: Lab, tmp_path: Path) -> None:
    tree = rootfs.node(tmp_path / "rootfs", files={"/service.js": NODE_SERVICE})
    command = ["node", "/service.js"]
    with running(lab, tree, "--user", "nobody", command=command) as address:
        well(travel(lab, "count", address, 8000))
