"What the tests of data sets share: noise, checksums, a web server, a check of refusals."

import hashlib
import http.server
import re
import threading

import numpy as np
import pytest
import torch

from thesis_repro.files import BadInput


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def bits(*arrays) -> str:
    "Sixteen digits that change with any bit, type or shape of the arrays."
    found = hashlib.sha256()
    for a in arrays:
        a = np.ascontiguousarray(a.numpy() if isinstance(a, torch.Tensor) else a)
        found.update(f"{a.dtype.str}{a.shape}".encode() + a.tobytes())
    return found.hexdigest()[:16]


def refused(call, *words):
    "The one-line message with which `call` is refused; it has all the words."
    with pytest.raises(BadInput) as e:
        call()
    message = str(e.value)
    assert message.isprintable() and len(message) < 600, message
    for word in words:
        assert word in message, message
    return message


class Server(http.server.ThreadingHTTPServer):
    "A web server on this machine that sends ranges, and `patience` bytes of an answer at most."

    def __init__(self):
        self.files, self.asked, self.ranges, self.patience = {}, [], True, None
        super().__init__(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        content = server.files.get(self.path[1:])
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.patience])

    def log_message(self, *args):
        pass
