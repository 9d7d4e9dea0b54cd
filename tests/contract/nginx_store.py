"""nginx as an object store with latency: what `cube.testing.ObjectStore` has to agree with."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

INSTALL = "apt-get install --no-install-recommends nginx libnginx-mod-http-echo"
_MODULE = "ngx_http_echo_module.so"

# One process, so that it reads what its user may read, and ends when it is told to. `tcp_nopush` would hold back the
# ends of bodies for another 40 ms. A request for several ranges gets the whole, as from object stores.
_CONFIGURATION = """
load_module "{module}";
daemon off;
master_process off;
pid "{folder}/nginx.pid";
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  log_format asked "$request_method $request_uri $http_range";
  access_log "{folder}/asked.log" asked;
  client_body_temp_path "{folder}/1"; proxy_temp_path "{folder}/2"; fastcgi_temp_path "{folder}/3";
  uwsgi_temp_path "{folder}/4"; scgi_temp_path "{folder}/5";
  default_type application/octet-stream;
  sendfile on; tcp_nopush off; tcp_nodelay on;
  keepalive_requests 1000000;
  max_ranges 1;
  server {{
    listen 127.0.0.1:{port};
    location / {{ echo_sleep {latency_s}; echo_exec /_file$uri; }}
    location /_file/ {{ internal; alias "{root}/"; }}
    location = /_ready {{ access_log off; return 204; }}
  }}
}}
"""


class NginxStore:
    """A running nginx that serves a folder; `url` has no trailing slash."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self._log = url, log

    def asked(self) -> list[str]:
        """Return "METHOD /path Range" of each request until now; "-" is no range."""
        is_ready(self.url)  # after its answer, what was answered before it is in the log
        return self._log.read_text(encoding="utf-8").splitlines()

    def forget(self) -> None:
        """Empty the list of requests."""
        is_ready(self.url)
        self._log.write_bytes(b"")


@contextlib.contextmanager
def run_nginx(
    find: Callable[[str, str], Path], root: Path, folder: Path, *, latency_s: float = 0.05
) -> Iterator[NginxStore]:
    """Serve `root`, with its own files in `folder`; `find` is the fixture `require_program`."""
    program = find("nginx", INSTALL)
    about = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stderr
    modules = re.search(r"--modules-path=(\S+)", about)
    if modules is None or not (module := Path(modules[1], _MODULE)).is_file():
        find("echo, a module of nginx", INSTALL)  # which no program is called
    for _ in range(5):  # somebody may take the port in between
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        text = _CONFIGURATION.format(module=module, folder=folder, root=root, port=port, latency_s=latency_s)
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        command = [program, "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]
        with (folder / "stderr").open("wb") as said, subprocess.Popen(command, stderr=said) as process:
            url = f"http://127.0.0.1:{port}"
            while process.poll() is None and not is_ready(url):
                time.sleep(0.01)
            if process.returncode is None:
                try:
                    yield NginxStore(url, folder / "asked.log")
                finally:
                    process.kill()
                return
        reason = (folder / "stderr").read_text(encoding="utf-8")
        if "Address already in use" not in reason:
            break
    raise RuntimeError(f"nginx did not start: {reason}")


def is_ready(url: str) -> bool:
    """Return whether a server answers there."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_ready", timeout=30) as answer:
        return answer.status == 204
    return False
