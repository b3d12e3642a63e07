"""A Ray that does not start, or an address where none is, is one line."""

import http.server
import socket
import threading

import pytest
import ray

from llrflow.base.errors import SpecError
from llrflow.sweep.running import cluster


class Silent:
    """Accepts connections (the system does), and says nothing."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        return self.socket.getsockname()[1]

    def __exit__(self, *error):
        self.socket.close()


class Web:
    """A server of another protocol, as Ray's own dashboard is."""

    def __enter__(self):
        self.server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        self.server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self.server.server_port

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("other", "says"),
    [(Silent, r"nobody answers at .* within 0\.3 s"), (Web, r"what listens at .* is not Ray")],
)
def test_what_is_not_ray_is_told_before_ray_waits_for_it(other, says, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWERS", 0.3)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would wait for minutes"))
    with other() as port, pytest.raises(SpecError, match=says), cluster.ray_at(f"127.0.0.1:{port}"):
        pass


@pytest.mark.parametrize("arguments", [["sweep"], ["run", "--address", "local"]], ids=["sweep", "run"])
def test_a_ray_that_is_late_is_one_line_and_leaves_nothing(
    arguments, sweeping, write_spec, command, tmp_path, monkeypatch
):
    ended = []

    def late(**_):
        raise Exception("The current node timed out during startup.\nIt has a second line.")

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    changes = {"sweep": None, "devices.hosts": 2} if "run" in arguments else {}
    path = write_spec(tmp_path / "spec.yaml", sweeping(), changes)
    code, out, err = command(arguments[0], path, *arguments[1:])
    assert (code, out, ended) == (1, "", [True])
    assert err.startswith("error: Ray did not start: The current node timed out during startup; try again when the")
    assert err.count("\n") == 1
