"""Load, abuse and stops: at a size for every run, and at full size with ``pytest -m soak tests/scoring``.

That takes half an hour and needs wrk. The full-size runs write their figures into
``benchmarks/results/scoring-sturdiness.json``.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.scoring.conftest import Serve
from tests.support.scoring_server import KEY, Client, Server, request

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scoring-sturdiness.json"
GOOD = b'{"data": [[1, 2, 3]]}'
FULL = [pytest.mark.soak, pytest.mark.timeout(3600)]


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write the figures of a full-size run down."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, name: figures}, indent=2, sort_keys=True) + "\n")


def megabytes(pids: list[int]) -> float:
    """Resident memory of all of them."""
    sizes = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return sum(int(size[1]) / 1024 for size in sizes if size)


# Bad requests


def bad_bodies(count: int, seed: int) -> Iterator[bytes]:
    """Bodies near good ones: bytes changed, cut, doubled, inserted; values, shapes and types that do not belong."""
    chosen = random.Random(seed)
    pieces = [
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\xff",
        b"\x00",
        b"NaN",
        b"1e999",
        b"-",
        b"null",
        b"true",
        b"9" * 400,
        b"[" * 500,
        b'{"a":' * 200,
        b'"data"',
        b"\xf0\x9f\x98\x80",
        b"0x1",
        b"1.",
    ]
    values = [None, True, "x", [], {}, [1], 1e308, -1e308, 2**70, "\ud7ff", "", {"AGE": 1}, 1.5, 10**320]
    for _ in range(count):
        if chosen.random() < 0.4:
            rows = [[chosen.choice(values) for _ in range(chosen.choice([0, 1, 2, 3, 3, 3, 4]))] for _ in range(2)]
            name, content = chosen.choice(["data", "data", "data", "Data"]), chosen.choice([rows, rows, 1, None])
            yield json.dumps({name: content}).encode()
            continue
        body = bytearray(b'{"data": [[1, 2.5, 3], {"AGE": 1, "BMI": -2e3, "BP": 3}]}')
        for _ in range(chosen.randint(1, 4)):
            at = chosen.randrange(len(body))
            end = at + chosen.randint(1, 20)
            match chosen.randrange(4):
                case 0:
                    body[at:at] = chosen.choice(pieces)
                case 1:
                    del body[at:end]
                case 2:
                    body[at] = chosen.randrange(256)
                case _:
                    body[at:end] = chosen.choice(pieces)
        yield bytes(body)


@pytest.mark.parametrize("count", [3_000, pytest.param(120_000, marks=FULL)])
def test_bad_bodies_get_4xx_and_harm_nobody(count: int, linear: Path, serve: Serve) -> None:
    """Bytes that are no request: 400 each, no 5xx, the same workers before and after, memory where it was."""
    server = serve(linear, SCORING_WORKERS="2")
    pids = server.worker_pids()
    client = server.connect()
    statuses: Counter[int] = Counter()
    early = 0.0
    for number, body in enumerate(bad_bodies(count * 100 // 95, seed=count)):
        statuses[client.request("POST", "/score", body).status] += 1
        if number == count // 4:
            early = megabytes(pids)
    assert set(statuses) == {200, 400}
    assert statuses[400] > count * 0.8
    assert pids == server.worker_pids()
    assert server.score([[1, 2, 3]]).json == {"result": [14.0]}
    grown = megabytes(pids) - early
    assert grown < 20
    if count > 100_000:
        assert statuses[400] >= 100_000
        figures = {"requests": sum(statuses.values()), "400": statuses[400], "megabytes_grown": round(grown, 2)}
        keep("bad bodies", figures)


@pytest.mark.parametrize("count", [500, pytest.param(30_000, marks=FULL)])
def test_bad_http_gets_4xx_or_the_end(count: int, linear: Path, serve: Serve) -> None:
    """Heads with bytes changed: an answer below 500 or a closed connection, never silence."""
    server = serve(linear)
    chosen = random.Random(count)
    pids = server.worker_pids()
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        whole = bytearray(request("POST", "/score", GOOD))
        for _ in range(chosen.randint(1, 6)):
            at = chosen.randrange(len(whole))
            end = at + chosen.randint(0, 3)
            whole[at:end] = bytes(chosen.randrange(256) for _ in range(chosen.randint(0, 3)))
        with server.connect() as client:
            client.send(bytes(whole))
            client.socket.shutdown(1)
            try:
                outcomes[str(client.answer().status)] += 1
            except ConnectionError:
                outcomes["closed"] += 1
    assert not [status for status in outcomes if status.startswith("5") and status != "505"]
    assert pids == server.worker_pids()
    assert server.score([[1, 2, 3]]).status == 200
    if count > 10_000:
        keep("bad HTTP", dict(outcomes))


@pytest.mark.parametrize("examples", [25, pytest.param(1_500, marks=FULL)])
def test_the_service_keeps_to_its_own_description(examples: int, mixed: Path, serve: Serve, tmp_path: Path) -> None:
    """schemathesis, from /swagger.json: what fits is answered, what does not is refused, all as described."""
    server = serve(mixed)
    pids = server.worker_pids()
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
        "negative_data_rejection,positive_data_acceptance,unsupported_method"
    )
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/swagger.json", "--no-color"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--max-examples", str(examples), "--checks", checks]
    command += ["--phases", "examples,coverage,fuzzing", "--seed", "1", "--generation-database", "none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=3000)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert pids == server.worker_pids()
    counted = server.metric("scoring_requests_total")
    assert server.metric('scoring_errors_total{code="internal"') == 0
    if examples > 1_000:
        keep("schemathesis", {"requests": counted, "refused": server.metric("scoring_errors_total")})


# Slow and many clients


@pytest.mark.parametrize("count", [200, pytest.param(2_000, marks=FULL)])
def test_idle_and_half_sent_connections_hinder_nobody(count: int, linear: Path, serve: Serve) -> None:
    """Idle ones, half heads, half bodies: the others are answered all the time, and memory stays small."""
    server = serve(linear)
    before = megabytes(server.worker_pids())
    whole = request("POST", "/score", GOOD)
    clients: list[Client] = [server.connect() for _ in range(count)]
    for number, client in enumerate(clients[: count // 2]):
        client.send(whole[:20] if number % 2 else whole[:-3])
    assert count <= server.metric("scoring_connections")
    times = []
    for _ in range(300):
        started = time.perf_counter()
        assert server.ask("POST", "/score", GOOD).status == 200
        times.append(time.perf_counter() - started)
    grown = megabytes(server.worker_pids()) - before
    assert grown < count * 0.05 + 20
    for client in clients[:5]:
        client.close()
    if count > 1_000:
        p99 = sorted(times)[int(len(times) * 0.99)] * 1000
        figures = {"connections": count, "others_p99_ms": round(p99, 2), "megabytes_grown": round(grown, 1)}
        keep("idle connections", figures)


# Stops under load


def load(server: Server, outcomes: Counter[str], stop: threading.Event) -> None:
    """Ask on one connection until the farewell; say what became of the last request."""
    try:
        with server.connect() as client:
            while True:
                answer = client.request("POST", "/score", GOOD)
                outcomes[str(answer.status)] += 1
                if answer.headers.get("connection") == "close" or stop.is_set():
                    return
    except ConnectionRefusedError:
        outcomes["refused before it was sent"] += 1
    except OSError as error:
        outcomes[f"lost: {error}"] += 1


@pytest.mark.parametrize("times", [2, pytest.param(40, marks=FULL)])
def test_stops_under_load_lose_nothing(times: int, linear: Path, serve: Serve) -> None:
    """SIGTERM while eight clients ask without pause: whatever was sent is answered."""
    outcomes: Counter[str] = Counter()
    for _ in range(times):
        server = serve(linear, SCORING_WORKERS="2")
        threads = [threading.Thread(target=load, args=(server, outcomes, threading.Event())) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert server.terminate() == 0
        for thread in threads:
            thread.join()
    assert set(outcomes) == {"200"}
    if times > 10:
        keep("stops under load", {"stops": times, "answered": outcomes["200"], "lost": 0})


# Long load


WRK = """
wrk.method = "POST"
wrk.body = '{"data": [[1, 2, 3]]}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer KEY"
"""


def wrk(server: Server, script: Path, *, connections: int, seconds: int, delay: int) -> dict[str, float]:
    """Load for ``seconds``; each connection waits ``delay`` milliseconds between an answer and its next request."""
    pause = f"function delay() return {delay} end" if delay else ""
    script.write_text(WRK.replace("KEY", KEY) + pause)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(script)]
    command.append(f"{server.url}/score")
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    assert found and slow
    return {"rate": float(found[1]), "p99_ms": float(slow[1]) * {"us": 0.001, "ms": 1, "s": 1000}[slow[2]]}


@pytest.mark.parametrize("seconds", [15, pytest.param(600, marks=FULL)])
def test_long_load_at_four_fifths_of_the_top_rate(seconds: int, linear: Path, serve: Serve, tmp_path: Path) -> None:
    """No error; for ten minutes, at full size, memory flat as well: its slope over the last eight minutes."""
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    server = serve(linear)
    script = tmp_path / "load.lua"
    top = wrk(server, script, connections=8, seconds=min(10, seconds // 5), delay=0)["rate"]
    connections = _connections_for(0.8 * top, server, script)
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(2):
            samples.append((time.monotonic(), megabytes(server.worker_pids())))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        measured = wrk(server, script, connections=connections, seconds=seconds, delay=2)
    finally:
        done.set()
        sampler.join()
    assert server.metric("scoring_errors_total") == 0
    late = np.array(samples[slice(len(samples) // 5, None)])
    growth = float(late[-1, 1] - late[0, 1])
    assert abs(growth) < 5
    if seconds == 600:
        slope = float(np.polyfit(late[:, 0] / 3600, late[:, 1], 1)[0])
        figures = {
            "top_rate": top,
            "rate": measured["rate"],
            "p99_ms": measured["p99_ms"],
            "errors": 0,
            "megabytes": round(float(late[-1, 1]), 1),
            "megabytes_an_hour": round(slope, 2),
        }
        keep("ten minutes", figures)


def _connections_for(rate: float, server: Server, script: Path) -> int:
    """How many connections with a pause ask at that rate, found by trying: near the top it is not proportional."""
    connections = 32
    for _ in range(4):
        seen = wrk(server, script, connections=connections, seconds=2, delay=2)["rate"]
        connections = max(4, round(connections * rate / seen))
    return connections
