"""`kdedge serve` beside the model in this process, over a long load, and under hostile requests.

    python benchmarks/serve.py ARTIFACT [--rounds 3] [--seconds 10]     speed at 1, 8 and 32 clients
    python benchmarks/serve.py ARTIFACT --minutes 60 [--pause 0.5]      memory over a long load
    python benchmarks/serve.py ARTIFACT --hostile 1000                  hostile requests
    python benchmarks/serve.py ARTIFACT --burst 10000                   requests at once

The server and the clients are processes of their own, on one machine; clients keep their
connections. Speed takes turns: in each round the bare model, then the server at each number of
clients, so that other load on the machine hits all alike. The bare model gets the same bytes and
gives classes, in one thread; `kdedge.load` does so in batches. `graph` is the model file alone, on
pixels that are ready, as `kdedge bench` times it; `tensors` are the same pixels over HTTP.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import itertools
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import kdedge
from kdedge.deploy.servers import model_name
from kdedge.inference.classify import Classifier
from kdedge.runtime.backend import to_input
from kdedge.runtime.machine import cpu_model
from kdedge.runtime.preprocess import MAX_PIXELS
from kdedge.serving.model import ServedModel

PHOTOS = Path(__file__).parents[2] / "shared" / "mini" / "photos-full"
CLIENTS = (1, 8, 32)


def photos() -> list[bytes]:
    """The files of some photos."""
    found = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    if not found:
        sys.exit(f"{PHOTOS} has no photos")
    return found


@contextlib.contextmanager
def served(artifact: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Context with a server in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "kdedge", "serve", str(artifact), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[3].rstrip(","), process
    finally:
        process.send_signal(signal.SIGTERM)
        print(f"the server ended with exit code {process.wait(60)}")


def address_of(url: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def post(data: bytes) -> bytes:
    """A request for the classes of an image."""
    return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def infer(name: str, batch: int, size_px: int, kind: str) -> bytes:
    """A request for the logits of a batch of ready pixels, as binary data."""
    n_values = batch * 3 * size_px**2
    data = bytes(4 * n_values if kind == "FP32" else n_values)
    given = {"name": "images", "shape": [batch, 3, size_px, size_px], "datatype": kind}
    request = {"inputs": [{**given, "parameters": {"binary_data_size": len(data)}}]}
    head = json.dumps({**request, "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(data)}"
    )
    return f"{lines}\r\n\r\n".encode() + head + data


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status code and body of one answer."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = connection.recv(65536)
        if not more:
            return 0, b""
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head[9:12]), body


def be_clients(url: str, n_clients: int, seconds: float, pause: float, tensor: str) -> None:
    """Sends photos from so many connections, and prints each answer's milliseconds as JSON.

    Args:
        url: of the server.
        n_clients: number of connections.
        seconds: how long.
        pause: seconds between an answer and the client's next request.
        tensor: in the place of photos, the arguments of `infer` as JSON; null for photos.
    """
    given = json.loads(tensor)
    requests = [post(photo) for photo in photos()] if given is None else [infer(*given)]
    ends = time.perf_counter() + seconds
    took: list[float] = []
    codes: collections.Counter[int] = collections.Counter()

    def be_client(first: int) -> None:
        with socket.create_connection(address_of(url)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for request in itertools.islice(itertools.cycle(requests), first, None):
                began = time.perf_counter()
                if began > ends:
                    break
                connection.sendall(request)
                code, _ = read_answer(connection)
                took.append(1000 * (time.perf_counter() - began))
                codes[code] += 1
                time.sleep(pause)

    threads = [threading.Thread(target=be_client, args=(i,)) for i in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"ms": took, "codes": codes}))


def load_from_elsewhere(
    url: str, n_clients: int, seconds: float, *, pause: float = 0.0, tensor: Any = None
) -> dict[str, Any]:
    """The same in a process of its own."""
    clients = [url, str(n_clients), str(seconds), str(pause), json.dumps(tensor)]
    command = [sys.executable, __file__, "-", "--clients", *clients]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found["codes"]) == {"200"}, found["codes"]
    return found


def measure_speed(artifact: Path, rounds: int, seconds: float, options: list[str]) -> None:
    """Prints requests a second and latencies."""
    files = photos()
    threads, batch = (
        int(options[options.index(name) + 1]) if name in options else None
        for name in ("--threads", "--batch")
    )
    took: dict[str, list[float]] = collections.defaultdict(list)
    rates: dict[str, list[float]] = collections.defaultdict(list)
    cpu_ms: dict[str, list[float]] = collections.defaultdict(list)
    classifier = Classifier.load(artifact, n_threads=threads)
    bare = ServedModel(classifier, batch)
    size_px, largest = bare.artifact.preprocess.size_px, bare.max_batch
    kind = "FP32" if bare.artifact.pixels == "float" else "UINT8"
    tensor = (model_name(bare.artifact.name), largest, size_px, kind)
    ready = to_input(np.zeros((largest, size_px, size_px, 3), np.uint8), bare.artifact.pixels)

    def one_image() -> int:
        data = files[len(took["bare"]) % len(files)]
        bare.results(bare.run(bare.prepare(data, max_pixels=MAX_PIXELS)), top=5)
        return 1

    def many_images() -> int:
        keyed = [("", files[i % len(files)]) for i in range(2 * largest)]
        return len(list(classifier.classify_many(keyed, top=5, batch=largest)))

    def graph() -> int:
        return len(bare.run(ready))

    with served(artifact, *options) as (url, process):
        bare.warm_up()
        load_from_elsewhere(url, 1, 1)
        for _ in range(rounds):
            for what, call in (
                ("bare", one_image),
                ("bare, batches", many_images),
                ("graph", graph),
            ):
                began, n_images, cpu = time.perf_counter(), 0, cpu_seconds(os.getpid())
                while (start := time.perf_counter()) - began < seconds:
                    n_images += call()
                    took[what].append(1000 * (time.perf_counter() - start))
                rates[what].append(n_images / (time.perf_counter() - began))
                cpu_ms[what].append(1000 * (cpu_seconds(os.getpid()) - cpu) / n_images)
            for what, n_clients, sent in (
                *((f"{n} client{'s' * (n > 1)}", n, None) for n in CLIENTS),
                ("tensors, 2 clients", 2, tensor),
            ):
                cpu = cpu_seconds(process.pid)
                found = load_from_elsewhere(url, n_clients, seconds, tensor=sent)["ms"]
                took[what] += found
                n_images = len(found) * (1 if sent is None else largest)
                rates[what].append(n_images * 1000 * n_clients / sum(found))
                cpu_ms[what].append(1000 * (cpu_seconds(process.pid) - cpu) / n_images)
    print(f"{artifact.name}, batches to {largest}, {cpu_model()}, load {os.getloadavg()[0]:.1f}")
    print("| what | images a second | CPU ms an image | p50, ms | p99, ms | p99 / bare |")
    print("|---|---:|---:|---:|---:|---:|")
    least = float(np.percentile(took["bare"], 99))
    for what, found_rates in rates.items():
        p50, p99 = np.percentile(took[what], (50, 99))
        cpu = float(np.median(cpu_ms[what]))
        numbers = (float(np.median(found_rates)), cpu, p50, p99, p99 / least)
        print(f"| {what} | {' | '.join(f'{number:.2f}' for number in numbers)} |")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_memory(artifact: Path, minutes: float, pause: float, options: list[str]) -> None:
    """Prints the server's memory after every twentieth of a long load."""
    with served(artifact, *options) as (url, process):
        load_from_elsewhere(url, 8, 5)
        n_requests = 0
        for step in range(21):
            n_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            print(
                f"{step * minutes / 20:6.1f} min  {n_requests:9,} requests"
                f"  {resident_mb(process.pid):8.1f} MB  {n_files} open files",
                flush=True,
            )
            if step < 20:
                n_requests += len(load_from_elsewhere(url, 8, minutes * 3, pause=pause)["ms"])


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of this size in its header, with pixels for a part of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def hostile_requests(name: str, n_requests: int) -> Iterator[tuple[str, bytes]]:
    """Kinds and bytes of requests that no client would send."""
    draw = random.Random(0)  # noqa: S311 - no secret
    files = photos()
    infer = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\n".encode()
    whole = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(whole, "PNG")
    paths = (
        "/../../etc/passwd",
        "/%2e%2e/x",
        "/v2/models/" + "x" * 4000,
        "/predict?top=" + "9" * 99,
    )
    for number in range(n_requests):
        photo = draw.choice(files)
        kinds: dict[str, Any] = {
            "truncated": lambda photo=photo: post(photo[: draw.randrange(len(photo))]),
            "changed bytes": lambda photo=photo: post(
                photo[:200] + draw.randbytes(40) + photo[240 : draw.randrange(300, len(photo))]
            ),
            "bomb": lambda: post(
                png_bomb(draw.randrange(8000, 2**31), draw.randrange(8000, 90_000))
            ),
            "100 megapixels": lambda: post(whole.getvalue()),
            "noise": lambda: post(draw.randbytes(draw.randrange(5000))),
            "too long": lambda: (
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n"
            ),
            "too short": lambda photo=photo: post(photo)[: -draw.randrange(1, 200)],
            "no length": lambda: (
                b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked"
                b"\r\n\r\n" + draw.randbytes(30)
            ),
            "no http": lambda: draw.randbytes(draw.randrange(1, 500)),
            "headers": lambda: b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * draw.randrange(15_000, 60_000),
            "paths": lambda: f"GET {draw.choice(paths)} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
            "json": lambda: (
                infer + b"Content-Length: 4000\r\n\r\n" + draw.choice((b"[", b"9", b"{")) * 4000
            ),
            "binary": lambda: (
                infer
                + b"Inference-Header-Content-Length: %d\r\nContent-Length: 50\r\n\r\n"
                % draw.randrange(-50, 10**9)
                + draw.randbytes(50)
            ),
            "half open": lambda: b"",
        }
        kind = list(kinds)[number % len(kinds)]
        yield kind, kinds[kind]()


def exchange(url: str, data: bytes) -> str:
    """Sends bytes, and says what came: a status code, `closed`, or `no answer`."""
    try:
        with socket.create_connection(address_of(url), timeout=20) as connection:
            connection.sendall(data)
            code, _ = read_answer(connection)
            return str(code) if code else "closed"
    except TimeoutError:
        return "no answer"
    except OSError:
        return "closed"


def be_hostile(artifact: Path, n_requests: int, options: list[str]) -> None:
    """Prints what hostile requests got, and whether others were answered rightly meanwhile."""
    files = photos()
    with kdedge.load(artifact) as model:
        expected = [model(file)[0].class_name for file in files]
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    rights: list[bool] = []
    with served(artifact, "--timeout", "5", *options) as (url, process):
        with urllib.request.urlopen(f"{url}/metrics") as answer:  # noqa: S310 - this machine
            assert answer.status == 200
        name = kdedge.open_artifact(artifact).name
        before = resident_mb(process.pid)
        ends = threading.Event()

        def be_good() -> None:
            while not ends.is_set():
                for file, wanted in zip(files, expected, strict=True):
                    with socket.create_connection(address_of(url)) as connection:
                        connection.sendall(post(file))
                        code, body = read_answer(connection)
                    rights.append(code == 200 and json.loads(body)["class"] == wanted)

        good = threading.Thread(target=be_good)
        good.start()
        slots, threads = threading.Semaphore(16), []
        for kind, data in hostile_requests(name, n_requests):
            slots.acquire()

            def send(kind: str = kind, data: bytes = data) -> None:
                found[kind][exchange(url, data)] += 1
                slots.release()

            threads.append(threading.Thread(target=send))
            threads[-1].start()
        for thread in threads:
            thread.join()
        ends.set()
        good.join()
        print(f"memory before and after: {before:.0f} and {resident_mb(process.pid):.0f} MB")
    for kind, counts in found.items():
        print(f"{kind:16} {dict(sorted(counts.items()))}")
    print(f"{sum(rights):,} of {len(rights):,} good requests meanwhile were answered rightly")


def be_burst(artifact: Path, n_requests: int, options: list[str]) -> None:
    """Prints what so many requests at once got."""
    request = post(photos()[0])

    def send(url: str) -> socket.socket | str:
        try:
            connection = socket.create_connection(address_of(url), timeout=120)
            connection.sendall(request)
        except OSError as error:
            return f"{type(error).__name__} while it was sent"
        return connection

    def receive(sent: socket.socket | str) -> str:
        if isinstance(sent, str):
            return sent
        with sent:
            try:
                return str(read_answer(sent)[0] or "closed without an answer")
            except OSError as error:
                return type(error).__name__

    with (
        served(artifact, *options) as (url, process),
        ThreadPoolExecutor(16) as senders,
        ThreadPoolExecutor(64) as receivers,
    ):
        began = time.perf_counter()
        sent = [senders.submit(send, url) for _ in range(n_requests)]
        got = [receivers.submit(lambda one=one: receive(one.result())) for one in sent]
        print(dict(collections.Counter(one.result() for one in got)))
        print(f"in {time.perf_counter() - began:.1f} s; memory {resident_mb(process.pid):.0f} MB")
        with urllib.request.urlopen(f"{url}/predict", photos()[0]) as answer:  # noqa: S310 - here
            print(f"then: {answer.status}")


def main() -> None:
    """Measures what the options ask for; unknown options are the server's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--pause", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--hostile", type=int)
    parser.add_argument("--burst", type=int)
    parser.add_argument("--clients", nargs=5, help=argparse.SUPPRESS)
    wanted, options = parser.parse_known_args()
    if wanted.clients:
        url, n_clients, seconds, pause, tensor = wanted.clients
        be_clients(url, int(n_clients), float(seconds), float(pause), tensor)
    elif wanted.minutes is not None:
        measure_memory(wanted.artifact, wanted.minutes, wanted.pause, options)
    elif wanted.hostile is not None:
        be_hostile(wanted.artifact, wanted.hostile, options)
    elif wanted.burst is not None:
        be_burst(wanted.artifact, wanted.burst, options)
    else:
        measure_speed(wanted.artifact, wanted.rounds, wanted.seconds, options)


if __name__ == "__main__":
    main()
