"""The service as a process: starting, stopping, losing workers, changing keys, and limits in time."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.scoring.conftest import Serve
from tests.support.packages import LINEAR, linear_graph, make_package, slow_graph
from tests.support.scoring_server import KEY, OTHER_KEY, SERVER, TIMEOUT, Server, refused_start, request
from tests.support.sources import ROOT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

GOOD = b'{"data": [[1, 2, 3]]}'
ONE = {"inputs": LINEAR["inputs"][:1], "outputs": LINEAR["outputs"]}


def test_no_keys_no_service(linear: Path) -> None:
    """Exit code 4 and the next step; a short key is no key."""
    code, text = refused_start({"AZUREML_MODEL_DIR": str(linear)})
    assert (code, "SCORING_AUTH=off" in text) == (4, True)
    code, text = refused_start({"AZUREML_MODEL_DIR": str(linear), "SCORING_PRIMARY_KEY": "short-one"})
    assert (code, "short-one" in text) == (4, False)
    assert refused_start({"AZUREML_MODEL_DIR": ""})[0] == 4


def test_a_package_with_a_wrong_hash_is_not_served(tmp_path: Path) -> None:
    """Exit code 8, naming the file."""
    package = make_package(tmp_path / "p", linear_graph())
    (package / "model" / "model.onnx").write_bytes(linear_graph((9.0, 9.0, 9.0)))
    code, text = refused_start({"AZUREML_MODEL_DIR": str(package), "SCORING_PRIMARY_KEY": KEY, "SCORING_WORKERS": "2"})
    assert (code, "model/model.onnx was changed" in text, "Traceback" in text) == (8, True, False)


def test_a_missing_library_is_said(linear: Path) -> None:
    """Exit code 4 and what to install, no traceback."""
    env = {**os.environ, "AZUREML_MODEL_DIR": str(linear), "SCORING_PRIMARY_KEY": KEY, "SCORING_PORT": "0"}
    done = subprocess.run([sys.executable, "-S", str(SERVER)], env=env, capture_output=True, timeout=TIMEOUT)
    text = (done.stdout + done.stderr).decode()
    assert (done.returncode, "install requirements.txt" in text, "Traceback" in text) == (4, True, False)


def test_a_taken_port_is_said(linear: Path, serve: Serve) -> None:
    """Exit code 5."""
    taken = serve(linear).url.rpartition(":")[2]
    code, text = refused_start({"AZUREML_MODEL_DIR": str(linear), "SCORING_PRIMARY_KEY": KEY, "SCORING_PORT": taken})
    assert (code, "SCORING_PORT" in text) == (5, True)


def test_two_services_that_start_at_once_on_one_port(tmp_path: Path, serve: Serve) -> None:
    """Both can bind it before either listens: the later one ends with 5 and says why."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    go = tmp_path / "go"
    script = WAITING.replace("GO", repr(str(go)))
    package = make_package(tmp_path / "p", script, LINEAR, [])
    servers = [serve(package, wait=False, SCORING_PORT=port) for _ in range(2)]
    for server in servers:
        server.wait_for("starting")
    go.touch()
    wait_until(lambda: any(server.process.poll() is not None for server in servers), "one of them gives up")
    (loser,) = [server for server in servers if server.process.poll() is not None]
    assert loser.process.wait() == 5
    assert "cannot listen here" in loser.events("start_failed")[0]["text"]
    assert "Traceback" not in loser.raw_log()


WAITING = """
import pathlib, time
def init():
    while not pathlib.Path(GO).exists():
        time.sleep(0.01)
def run(raw):
    return [7]
"""


def test_without_keys_only_when_asked_for(linear: Path, serve: Serve) -> None:
    """And the log says so."""
    server = serve(linear, SCORING_AUTH="off")
    assert server.ask("POST", "/score", GOOD, Authorization="").status == 200
    assert len(server.events("no_keys")) == 1


def test_on_a_unix_socket(linear: Path, serve: Serve, tmp_path: Path) -> None:
    """SCORING_SOCKET takes the place of the port."""
    path = tmp_path / "s.sock"
    server = serve(linear, SCORING_SOCKET=str(path))
    assert server.ask("POST", "/score", GOOD).json == {"result": [14.0]}
    assert server.terminate() == 0
    assert not path.exists()


def test_a_socket_in_use_is_not_taken_from_its_service(linear: Path, serve: Serve, tmp_path: Path) -> None:
    """A second service ends with 5; only what a killed one left behind is replaced."""
    path = tmp_path / "s.sock"
    server = serve(linear, SCORING_SOCKET=str(path))
    env = {"AZUREML_MODEL_DIR": str(linear), "SCORING_PRIMARY_KEY": KEY, "SCORING_SOCKET": str(path)}
    code, text = refused_start(env)
    assert (code, "SCORING_SOCKET" in text) == (5, True)
    assert server.score([[1, 2, 3]]).status == 200
    server.kill()
    assert path.exists()
    assert serve(linear, SCORING_SOCKET=str(path)).score([[1, 2, 3]]).status == 200


def test_a_path_too_long_for_a_socket_is_said(linear: Path) -> None:
    """Exit code 5, with a reason."""
    env = {"AZUREML_MODEL_DIR": str(linear), "SCORING_PRIMARY_KEY": KEY, "SCORING_SOCKET": "/tmp/" + "x" * 200}
    code, text = refused_start(env)
    assert (code, "cannot listen here (AF_UNIX path too long)" in text) == (5, True)


def test_without_descriptors_the_service_waits_and_recovers(linear: Path, serve: Serve) -> None:
    """It says so once rather than a thousand times, and goes on when some are free again."""
    server = serve(linear)
    pid = server.worker_pids()[0]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    first = server.connect()
    assert first.request("GET", "/").status == 200
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), before[1]))
    late = server.connect()
    late.send(request("GET", "/"))
    server.wait_for("accept_failed")
    time.sleep(1)
    assert first.request("GET", "/").status == 200
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert late.answer().status == 200
    assert [line["again_in"] for line in server.events("accept_failed")] == [0.5]


def test_changed_keys_reach_every_worker(linear: Path, serve: Serve, tmp_path: Path) -> None:
    """By the changed file alone; the old key ends, a wrong file changes nothing, and no key is in the log."""
    path = keys_file(tmp_path, KEY)
    server = serve(linear, SCORING_KEYS_FILE=str(path), SCORING_WORKERS="2")
    keys_file(tmp_path, NEW_KEY)
    server.wait_for("keys_reloaded", 2)
    assert tuple(statuses(server, key) for key in (NEW_KEY, KEY, OTHER_KEY)) == ({200}, {401}, {200})
    path.write_text("not json")
    server.wait_for("keys_not_reloaded", 3)
    assert statuses(server, NEW_KEY) == {200}
    keys_file(tmp_path, KEY)
    server.wait_for("keys_reloaded", 4)
    assert (statuses(server, KEY), statuses(server, NEW_KEY)) == ({200}, {401})
    assert not any(key in server.raw_log() for key in (KEY, OTHER_KEY, NEW_KEY))


def test_sighup_makes_every_worker_read_the_keys(linear: Path, serve: Serve, tmp_path: Path) -> None:
    """Also when nothing about the file shows that its content is another one."""
    path = keys_file(tmp_path, KEY)
    server = serve(linear, SCORING_KEYS_FILE=str(path), SCORING_WORKERS="2")
    old = path.stat()
    with path.open("r+") as file:  # in place, equally long, and of the same age
        file.write(json.dumps({"primary": NEW_KEY, "secondary": OTHER_KEY}))
        file.flush()
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    before = len(server.events("keys_reloaded"))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("keys_reloaded", before + 2)
    assert (statuses(server, NEW_KEY), statuses(server, KEY)) == ({200}, {401})


def test_sighup_while_a_worker_starts_does_not_end_it(tmp_path: Path, serve: Serve) -> None:
    """It is kept for the worker until it can read its keys again."""
    path = keys_file(tmp_path, KEY)
    script = WAITING.replace("GO", repr(str(tmp_path / "go")))
    server = serve(make_package(tmp_path / "p", script, LINEAR, []), wait=False, SCORING_KEYS_FILE=str(path))
    server.wait_for("starting")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: bool(server.worker_pids()), "a worker is started")
    server.process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    server.wait_until_ready()
    assert (len(server.events("ready")), server.events("worker_lost")) == (1, [])
    server.wait_for("keys_reloaded")
    assert server.score([[1, 2, 3]]).json == {"result": [7]}


def test_a_revoked_key_stays_revoked_when_a_worker_is_replaced(linear: Path, serve: Serve, tmp_path: Path) -> None:
    """A new worker starts with the keys in force, not with those of the start, even if the file is wrong by then."""
    path = keys_file(tmp_path, KEY)
    server = serve(linear, SCORING_KEYS_FILE=str(path))
    keys_file(tmp_path, NEW_KEY)
    server.wait_for("keys_reloaded")
    path.write_text('{"primary": "')
    server.wait_for("keys_not_reloaded", 2)
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.wait_for("ready", 2)
    assert (statuses(server, KEY), statuses(server, NEW_KEY)) == ({401}, {200})


NEW_KEY = "rotated-0123456789abcdef"  # as long as KEY


def keys_file(directory: Path, primary: str) -> Path:
    """The file with ``primary`` and the usual second key."""
    path = directory / "keys.json"
    path.write_text(json.dumps({"primary": primary, "secondary": OTHER_KEY}))
    return path


def statuses(server: Server, key: str) -> set[int]:
    """How ``key`` is answered on connections that every worker gets some of."""
    answers = []
    clients = [server.connect() for _ in range(8)]
    for client in clients:
        answers.append(client.request("POST", "/score", GOOD, {"Authorization": f"Bearer {key}"}).status)
        client.close()
    return set(answers)


def test_numbers_are_summed_over_workers_and_outlive_them(linear: Path, serve: Serve) -> None:
    """A killed worker is replaced; nothing that was counted is lost."""
    server = serve(linear, SCORING_WORKERS="2")
    clients = [server.connect() for _ in range(6)]
    for client in clients * 5:
        assert client.request("POST", "/score", GOOD).status == 200
    wait_until(lambda: server.metric("scoring_rows_total") == 30, "rows that were answered are not counted")
    assert tuple(server.metric(name) for name in ('scoring_requests_total{route="score"', "scoring_workers_ready")) == (
        30,
        2,
    )
    for client in clients:
        client.close()
    first = server.worker_pids()
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    server.wait_for("ready", 4)
    assert set(first).isdisjoint(server.worker_pids())
    assert server.score([[1, 2, 3]]).status == 200
    # A worker counts once it has answered, so another may be asked before.
    wait_until(lambda: server.metric("scoring_rows_total") == 31, "a row that was answered is not counted")
    assert server.metric("scoring_worker_restarts_total") == 2


def test_connections_are_shared_out_evenly(linear: Path, serve: Serve) -> None:
    """Eight connections, two workers: four each, give or take one on a busy machine."""
    server = serve(linear, SCORING_WORKERS="2")
    clients = [server.connect() for _ in range(8)]
    owners = [client.request("GET", "/").headers["x-request-id"].partition("-")[0] for client in clients]
    assert 3 <= min(owners.count(owner) for owner in set(owners)) <= 4


def test_sigterm_loses_no_request(linear: Path, serve: Serve) -> None:
    """Clients that keep asking on open connections get an answer to everything they sent, then a farewell."""
    server = serve(linear, SCORING_WORKERS="2")
    outcomes: list[str] = []

    def ask_until_the_end() -> None:
        with server.connect() as client:
            while True:
                answer = client.request("POST", "/score", GOOD)
                if answer.status != 200 or answer.json != {"result": [14.0]}:
                    outcomes.append(f"wrong: {answer.status}")
                    return
                if answer.headers.get("connection") == "close":
                    outcomes.append("farewell")
                    return

    def run() -> None:
        try:
            ask_until_the_end()
        except OSError as error:
            outcomes.append(f"lost: {error}")

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.metric("scoring_rows_total") > 100, "the clients work")
    assert server.terminate() == 0
    for thread in threads:
        thread.join(TIMEOUT)
    assert ["farewell"] * 8 == outcomes
    assert sum(line["connections_cut"] for line in server.events("stopped") if "connections_cut" in line) == 0


def test_sigterm_waits_for_what_is_in_the_model_and_in_the_queue(tmp_path: Path, serve: Serve) -> None:
    """Requests that were taken in are answered, idle connections are closed, and the process ends."""
    server = serve(make_package(tmp_path / "p", SLEEPY, ONE, []))
    clients = [server.connect() for _ in range(3)]
    idle = server.connect()
    assert idle.request("GET", "/").status == 200
    for client in clients:
        client.send(request("POST", "/score", b'{"data": [[0.4]]}'))
    wait_until(lambda: server.metric("scoring_in_flight_requests") == 3, "all are in")
    assert server.terminate() == 0
    assert [client.answer().status for client in clients] == [200, 200, 200]
    assert idle.is_closed()


def test_sigterm_ends_in_bounded_time(tmp_path: Path, serve: Serve) -> None:
    """A model that never ends and a client that never finishes its request do not keep the process."""
    server = serve(make_package(tmp_path / "p", SLEEPY, ONE, []), SCORING_DRAIN_TIMEOUT="0.5")
    stuck, half = server.connect(), server.connect()
    stuck.send(request("POST", "/score", b'{"data": [[1000]]}'))
    half.send(request("POST", "/score", GOOD)[:-5])
    wait_until(lambda: server.metric("scoring_in_flight_requests") == 1, "it is in the model")
    assert server.terminate() == 0


SLEEPY = """
import json, time
def init():
    pass
def run(raw):
    rows = json.loads(raw)["data"]
    time.sleep(rows[0][0])
    return [row[0] for row in rows]
"""


def test_the_queue_is_limited_in_length_and_time(tmp_path: Path, serve: Serve) -> None:
    """503 with Retry-After, while the health is answered all the time."""
    package = make_package(tmp_path / "p", SLEEPY, ONE, [])
    server = serve(package, SCORING_QUEUE_TIMEOUT="0.3", SCORING_MAX_QUEUE="2")
    busy, *others = [server.connect() for _ in range(5)]
    busy.send(request("POST", "/score", b'{"data": [[2]]}'))
    wait_until(lambda: server.metric("scoring_in_flight_requests") == 1, "the first is in the model")
    for client in others:
        client.send(request("POST", "/score", b'{"data": [[0]]}'))
    answers = [client.answer() for client in others]
    codes = sorted(answer.json["error"]["code"] for answer in answers)
    assert codes == ["queue_full", "queue_full", "queue_timeout", "queue_timeout"]
    assert {(answer.status, answer.headers["retry-after"]) for answer in answers} == {(503, "1")}
    assert server.ask("GET", "/health/ready").status == 200
    assert busy.answer().status == 200


def test_an_onnx_model_that_takes_too_long_is_stopped(tmp_path: Path, serve: Serve) -> None:
    """503 with Retry-After; the next request is served by the same worker."""
    example = [{"request": {"data": [[1.0]]}, "response": {"result": [1.0]}}]
    package = make_package(tmp_path / "p", slow_graph(20), ONE_X, example)
    server = serve(package, SCORING_TIMEOUT="1")
    pids = server.worker_pids()
    answer = server.score([[1e6]])
    assert (answer.status, answer.json["error"]["code"], answer.headers["retry-after"]) == (503, "model_timeout", "1")
    assert server.score([[1.0]]).json == {"result": [1.0]}
    assert pids == server.worker_pids()
    assert [line for line in server.raw_log().splitlines() if not line.startswith("{")] == []


ONE_X = {"inputs": [{"name": "X", "type": "double"}], "outputs": LINEAR["outputs"]}


def test_a_script_that_never_returns_costs_its_worker_not_the_service(tmp_path: Path, serve: Serve) -> None:
    """503 in time; the worker, which Python cannot free, is replaced."""
    server = serve(make_package(tmp_path / "p", SLEEPY, ONE, []), SCORING_TIMEOUT="0.5", SCORING_DRAIN_TIMEOUT="1")
    answer = server.score([[1000]])
    assert (answer.status, answer.json["error"]["code"]) == (503, "model_timeout")
    lost = server.wait_for("worker_lost")
    assert lost[0]["exit_code"] == 70
    server.wait_for("ready", 2)
    assert server.score([[0]]).json == {"result": [0.0]}


def test_a_stuck_worker_takes_no_connection_from_the_others(tmp_path: Path, serve: Serve) -> None:
    """While it ends, the address takes as many connections as before; the other worker answers them."""
    settings = {"SCORING_WORKERS": "2", "SCORING_DRAIN_IDLE": "30", "SCORING_DRAIN_TIMEOUT": "30"}
    server = serve(make_package(tmp_path / "p", SLEEPY, ONE, []), SCORING_TIMEOUT="0.5", **settings)
    kept = [server.connect() for _ in range(4)]  # the stuck worker stays for as long as it has connections
    assert {client.request("GET", "/").status for client in kept} == {200}
    assert kept[0].request("POST", "/score", b'{"data": [[1000]]}').status == 503
    stuck = server.wait_for("draining")[0]["worker"]
    (other,) = set(server.worker_pids()) - {stuck}
    os.kill(other, signal.SIGSTOP)  # nobody accepts: what can connect now waits in the socket's queue
    try:
        clients = [server.connect(timeout=10) for _ in range(8)]
    finally:
        os.kill(other, signal.SIGCONT)
    assert {client.request("GET", "/").status for client in clients} == {200}


def test_slow_clients_are_ended_and_hinder_nobody(linear: Path, serve: Serve) -> None:
    """Half a head, half a body: 408 in time; an idle connection is closed; everybody else is served meanwhile."""
    server = serve(linear, SCORING_READ_TIMEOUT="1", SCORING_IDLE_TIMEOUT="2")
    whole = request("POST", "/score", GOOD)
    half_head, half_body, idle = (server.connect() for _ in range(3))
    half_head.send(whole[:30])
    half_body.send(whole[:-3])
    for _ in range(20):
        assert server.ask("POST", "/score", GOOD).status == 200
    for client in (half_head, half_body):
        answer = client.answer()
        assert (answer.status, answer.json["error"]["code"]) == (408, "request_timeout")
        assert client.is_closed()
    assert idle.is_closed()


def test_a_client_that_takes_no_answers_is_cut_off_without_growth(linear: Path, serve: Serve) -> None:
    """Its requests stop being read, and after a while it is gone."""
    server = serve(linear, SCORING_READ_TIMEOUT="1")
    client = server.connect(timeout=5)
    wish = request("GET", "/swagger.json") * 200
    try:
        for _ in range(500):
            client.send(wish)
    except OSError:
        pass
    else:
        pytest.fail("100,000 answers were piled up for it")
    assert memory_of(server) < 300
    assert server.ask("GET", "/").status == 200


def memory_of(server: Server) -> float:
    """Resident megabytes of the first worker."""
    pid = server.worker_pids()[0]
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_it_needs_no_call_that_macos_does_not_have(linear: Path, serve: Serve) -> None:
    """It serves, changes keys, replaces a lost worker and stops, in a Python without those calls."""
    server = serve(linear, program=(str(ROOT / "tests" / "support" / "as_macos.py"), str(SERVER)))
    assert server.score([[1, 2, 3]]).json == {"result": [14.0]}
    server.process.send_signal(signal.SIGHUP)
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.wait_for("ready", 2)
    assert server.score([[1, 2, 3]]).json == {"result": [14.0]}
    assert server.terminate() == 0


def test_a_supervisor_that_dies_while_its_worker_loads_leaves_none_behind(tmp_path: Path, serve: Serve) -> None:
    """The worker knows its supervisor from before the fork, so it notices even what happened before it was ready."""
    package = make_package(tmp_path / "slow", "import time\ndef init(): time.sleep(1)\ndef run(raw): return [1]\n")
    server = serve(package, wait=False)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    wait_until(lambda: bool(children.read_text().split()), "a worker")
    (worker,) = children.read_text().split()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the end of the worker")


def test_too_many_connections(linear: Path, serve: Serve) -> None:
    """The one too many beside clients with a key gets 503 with Retry-After."""
    server = serve(linear, SCORING_MAX_CONNECTIONS="2")
    kept = [server.connect(), server.connect()]
    assert [client.request("GET", "/model").status for client in kept] == [200, 200]
    with server.connect() as client:
        answer = client.request("GET", "/model")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert client.is_closed()


def test_a_service_with_too_many_connections_is_not_taken_for_a_dead_one(linear: Path, serve: Serve) -> None:
    """Beside clients with a key, who keep their places, a probe is answered and its connection ended."""
    server = serve(linear, SCORING_MAX_CONNECTIONS="1")
    kept = server.connect()
    assert kept.request("GET", "/model").status == 200
    for _ in range(3):
        with server.connect() as probe:
            assert (probe.request("GET", "/health/live").status, probe.is_closed()) == (200, True)
    assert kept.request("GET", "/model").status == 200


def test_connections_without_a_key_make_room(linear: Path, serve: Serve) -> None:
    """However many there are, neither a probe nor a client with a key finds their places taken."""
    server = serve(linear, SCORING_MAX_CONNECTIONS="4")
    kept = server.connect()
    assert kept.request("GET", "/model").status == 200
    strangers = [server.connect() for _ in range(40)]
    for path in ("/health/live", "/model", "/health/ready"):
        with server.connect() as client:
            assert client.request("GET", path).status == 200
    assert kept.request("GET", "/model").status == 200
    assert strangers[0].is_closed()
    for client in strangers:
        client.close()


BROKEN = {
    "raises": "def init(): pass\ndef run(raw): raise ValueError('##vso[task.complete]\\nsecond line')",
    "exits": "import sys\ndef init(): pass\ndef run(raw): sys.exit(3)",
    "raises what is no Exception": "def init(): pass\ndef run(raw): raise BaseException('odd')",
    "answers half a character": "def init(): pass\ndef run(raw): return ['\\ud800']",
    "recurses": "def init(): pass\ndef run(raw): return run(raw)",
    "answers too few": "def init(): pass\ndef run(raw): return [1, 2]",
    "answers no JSON": "def init(): pass\ndef run(raw): return [object()]",
    "answers text that is no JSON": "def init(): pass\ndef run(raw): return 'no'",
    "answers nothing": "def init(): pass\ndef run(raw): return None",
    "answers without result": "def init(): pass\ndef run(raw): return {'predictions': [1]}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_script_that_breaks_on_a_request(tmp_path: Path, serve: Serve, name: str) -> None:
    """500 with an id under which the log says why; the worker lives on."""
    server = serve(make_package(tmp_path / "p", BROKEN[name], LINEAR, []))
    pids = server.worker_pids()
    for _ in range(3):
        answer = server.score([[1, 2, 3]])
        assert (answer.status, answer.json["error"]["code"]) == (500, "model_failed")
    assert answer.json["error"]["request_id"] in {line["request_id"] for line in server.wait_for("model_failed", 3)}
    assert pids == server.worker_pids()
    assert "##vso" not in server.raw_log() and "second line" not in json.dumps(answer.json)


UNUSABLE = {
    "no syntax": "def init(:",
    "no such module": "import not_there_at_all",
    "no init": "def run(raw): return []",
    "no run": "def init(): pass",
    "init raises": "def init(): raise RuntimeError('no licence')\ndef run(raw): return []",
    "init exits": "def init(): raise SystemExit(0)\ndef run(raw): return []",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_script_that_cannot_start(tmp_path: Path, name: str) -> None:
    """Exit code 8 and a next step, no traceback."""
    package = make_package(tmp_path / "p", UNUSABLE[name], LINEAR, [])
    code, text = refused_start({"AZUREML_MODEL_DIR": str(package), "SCORING_PRIMARY_KEY": KEY})
    assert (code, "the script does not start" in text, "Traceback" in text) == (8, True, False)


def test_what_a_script_prints_is_logged_and_keys_are_hidden_from_it(tmp_path: Path, serve: Serve) -> None:
    """print() makes lines of the log, which cannot be commands; the environment holds no key."""
    script = """
import os
def init():
    print("##vso[task.complete]", [name for name in os.environ if name.endswith("_KEY")])
def run(raw):
    print("scored")
    return [0, 0]
"""
    server = serve(make_package(tmp_path / "p", script, LINEAR, []))
    assert server.score([[1, 2, 3]] * 2).json == {"result": [0, 0]}
    texts = [line["text"] for line in server.wait_for("output", 2)]
    assert texts == ["\\u0023\\u0023vso[task.complete] []", "scored"]
