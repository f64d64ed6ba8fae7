from __future__ import annotations

import dataclasses
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from emoreg.cluster.machine import Finding
from emoreg.cluster.probes import Look, Node
from emoreg.cluster.verdicts import (
    Skew,
    judge_access,
    judge_clocks,
    judge_code,
    judge_dashboard,
    judge_gpus,
    judge_room,
    judge_storage,
    judge_versions,
)
from emoreg.tuning.joining import Answer
from pyarrow import fs

from tests.integration.cluster import Cluster, cluster_of, free_port, lose, num_nodes
from tests.integration.test_study import wait_for

GIB = 2**30
HERE = Look(versions={"Python": "3.11.7", "ray": "2.60.0", "timm": "1.0.31"}, free_disk=GIB, cached={})
ROOT = Path(__file__).parents[2]


def versions(**changed: str) -> Look:
    return dataclasses.replace(HERE, versions={**HERE.versions, **changed})


def verdicts(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.found) for finding in findings]


def test_versions_are_compared_with_this_machines() -> None:
    found = list(judge_versions(HERE, {"a": HERE, "b": versions(Python="3.12.1", timm="1.0.20"), "c": versions(timm="none")}))
    assert [(finding.verdict, finding.what, finding.found) for finding in found] == [
        ("ok", "Python", "3.11.7 here and on a, c"),
        ("bad", "Python", "3.12.1 on b; 3.11.7 here"),
        ("ok", "ray", "2.60.0 everywhere"),
        ("ok", "timm", "1.0.31 here and on a"),
        ("note", "timm", "1.0.20 on b; 1.0.31 here"),
        ("bad", "timm", "none on c; 1.0.31 here"),
    ]
    assert "pip install timm==1.0.31" in found[4].cure
    assert "use Python 3.11.7" in found[1].cure


def test_a_node_with_other_code_is_found() -> None:
    here = {"version": "0.1.0", "digest": "aa"}
    other, older = {"version": "0.1.0", "digest": "bb"}, {"version": "0.0.9", "digest": "cc"}
    found = judge_code(here, {"a": here, "b": other, "c": older}, {"d": "ModuleNotFoundError: No module named 'emoreg'"})
    assert verdicts(found) == [
        ("ok", "0.1.0 here and on a"),
        ("note", "0.1.0, code bb, on b; 0.1.0, code aa, here"),
        ("bad", "0.0.9, code cc, on c; 0.1.0, code aa, here"),
        ("bad", "it cannot be imported on d: ModuleNotFoundError: No module named 'emoreg'"),
    ]


def test_declared_gpus_are_held_against_those_that_torch_sees() -> None:
    declared = {"a": 2.0, "b": 2.0, "c": 4.0, "d": 1.0, "e": 0.0, "f": 0.0, "g": 1.0}
    seen = {"a": ["L4", "L4"], "b": ["L4", "L4"], "c": ["H100", "L4"], "d": [], "e": ["L4"], "f": []}
    assert verdicts(judge_gpus(declared, seen, {"g": "ModuleNotFoundError: No module named 'torch'"})) == [
        ("ok", "2 x L4 on a, b"),
        ("bad", "Ray gives away 4, torch sees 1 x H100, 1 x L4 on c"),
        ("bad", "Ray gives away 1, torch sees none on d"),
        ("note", "Ray gives away 0, torch sees 1 x L4 on e"),
        ("ok", "none on f"),
        ("bad", "torch cannot be asked: ModuleNotFoundError: No module named 'torch' on g"),
    ]


def test_a_storage_that_is_another_on_each_node_is_found() -> None:
    unseen = {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")}
    assert verdicts(judge_storage("/nfs", {}, {}, unseen)) == [("bad", "each node sees at /nfs only what it wrote itself")]
    assert verdicts(judge_storage("/nfs", {}, {}, {"a": ("b",), "b": ("a",)})) == [
        ("bad", "each node sees at /nfs only what it wrote itself")
    ]
    assert verdicts(judge_storage("/nfs", {}, {}, {"a": ()})) == [("ok", "/nfs: written and read back on the node")]


def test_a_storage_is_blamed_on_the_nodes_that_lack_it() -> None:
    unseen = {"a": ("d",), "b": ("d",), "d": ("a", "b", "e")}
    found = list(judge_storage("/nfs", {"c": "PermissionError: no"}, {"e": "OSError: stale"}, unseen))
    assert verdicts(iter(found)) == [
        ("bad", "c cannot write to /nfs: PermissionError: no"),
        ("bad", "e cannot read from /nfs: OSError: stale"),
        ("bad", "a, b cannot see at /nfs what d wrote"),
        ("bad", "d cannot see at /nfs what a, b, e wrote"),
    ]
    assert "mount one folder" in found[2].cure
    assert verdicts(judge_storage("/nfs", {"c": "no"}, {}, {"a": (), "b": ()})) == [
        ("bad", "c cannot write to /nfs: no"),
        ("ok", "/nfs: written and read back on a, b"),
    ]
    assert verdicts(judge_storage("/nfs", {}, {}, {"a": ()}, ["b"])) == [
        ("note", "/nfs could not be tried on b"),
        ("ok", "/nfs: written and read back on a"),
    ]
    assert verdicts(judge_storage("/nfs", {}, {}, {}, ["a", "b"])) == [("note", "/nfs could not be tried on all nodes")]


def test_a_clock_is_blamed_for_what_is_certain() -> None:
    skews = {
        "a": Skew(ahead=-0.01, error=0.002),
        "b": Skew(ahead=1.4, error=0.5),  # may be 0.9
        "c": Skew(ahead=-1.6, error=0.5),
        "d": Skew(ahead=42.0, error=0.001),
    }
    assert verdicts(judge_clocks(skews)) == [
        ("note", "c is 1.6 s behind this machine's (±0.5)"),
        ("bad", "d is 42.0 s ahead of this machine's (±0.001)"),
        ("ok", "the others within 1.9 s of this machine's"),
    ]


def test_room_for_image_sets_counts_the_copies_that_are_there() -> None:
    sets = {"big.arrow": 6 * GIB, "small.arrow": GIB, "big.lock": 99 * GIB}
    node = Node(name="", ray_id="", cpus=1, gpus=0, memory=8 * GIB, object_store=GIB)
    looks = {
        "roomy": (9, {}, 8),
        "has it": (2, {"big.arrow": 6 * GIB}, 8),
        "has another": (2, {"big.arrow": 5 * GIB}, 8),
        "one at a time": (6.5, {}, 8),
        "forgetful": (9, {}, 4),
    }
    found = judge_room(
        sets,
        {name: dataclasses.replace(node, name=name, memory=memory * GIB) for name, (_, _, memory) in looks.items()},
        {name: Look(versions={}, free_disk=int(free * GIB), cached=cached) for name, (free, cached, _) in looks.items()},
    )
    assert verdicts(found) == [
        ("bad", "has another has 2.0 GiB of disk for copies of 7.0 GiB, and the largest does not fit"),
        ("note", "one at a time has 6.5 GiB of disk for copies of 7.0 GiB, which fit singly"),
        ("note", "forgetful has 4.0 GiB of memory for 7.0 GiB"),
        ("ok", "2 in this storage, 7.0 GiB; disk for copies 2.0 GiB and memory 8.0 GiB or more on roomy, has it"),
    ]


@pytest.mark.parametrize(
    ("head", "answer", "verdict"),
    [
        ("127.0.0.1:6379", "open", "note"),
        ("[::1]:6379", "open", "note"),
        ("10.0.0.1:6379", "open", "bad"),
        ("head.example.org:6379", "open", "bad"),
        ("10.0.0.1:6379", "refused", "ok"),
        ("10.0.0.1:6379", "silent", "note"),
    ],
)
def test_a_cluster_that_lets_anybody_in_is_bad_beyond_this_machine(head: str, answer: Answer, verdict: str) -> None:
    assert judge_access(head, answer).verdict == verdict


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("", "ok"),
        ("127.0.0.1:8265", "ok"),
        ("http://localhost:8265", "ok"),
        ("10.0.0.1:8265", "note"),
        ("0.0.0.0:8265", "note"),
    ],
)
def test_a_dashboard_beyond_this_machine_is_noted(url: str, verdict: str) -> None:
    assert judge_dashboard(url).verdict == verdict


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a node."""
    with cluster_of(tmp_path_factory.mktemp("r"), "", "") as made:
        yield made


def begin_head(cluster: Cluster, port: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    head = cluster.add_node(
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--include-dashboard=false",
        f"--temp-dir={tmp_path_factory.mktemp('r')}",  # Ray's socket paths must be short
    )
    wait_for(lambda: num_nodes(cluster) == 1, head)


def end(nodes: list[subprocess.Popen[bytes]]) -> None:
    for node in nodes:
        if node.poll() is None:
            lose(node)


def doctor(cluster: Cluster, storage: object, folder: Path, **environment: str) -> tuple[int, str]:
    """The doctor's exit code, and what it printed, its cells joined."""
    command = [sys.executable, "-m", "emoreg", "doctor", "--address", cluster.address, "--storage", str(storage)]
    done = subprocess.run(
        command,
        cwd=folder,  # Ray lets its workers import from there
        env={**cluster.environment, "COLUMNS": "400", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, re.sub(" +", " ", done.stdout)


@pytest.mark.slow
def test_a_healthy_cluster_is_found_healthy_and_its_bucket_left_as_it_was(
    cluster: Cluster, bucket: str, tmp_path: Path
) -> None:
    address = bucket.partition("endpoint_override=")[2].partition("&")[0]
    s3 = fs.S3FileSystem(access_key="key", secret_key="secret", endpoint_override=address, scheme="http")
    folder = bucket.partition("@")[2].partition("?")[0]
    with s3.open_output_stream(f"{folder}/imagesets/digits-8px-0123456789ab.arrow") as stream:
        stream.write(b"x")
    code, text = doctor(cluster, bucket, tmp_path)
    assert code == 0, text
    assert "ok cluster 2 nodes with 2 CPU, 0 GPU" in text
    for what in ("Python", "ray", "torch", "timm", "pyarrow", "optuna", "emoreg"):
        assert re.search(rf"^ok {what} \S+ everywhere", text, flags=re.MULTILINE), text
    assert "ok GPUs none on all nodes" in text
    assert re.search(
        r"^ok storage s3://\*\*\*@emoreg/store\w+: written and read back on all nodes", text, flags=re.MULTILINE
    ), text
    assert re.search(r"^ok clock all within 0\.\d+ s", text, flags=re.MULTILINE), text
    assert "image sets take none of it" in text
    assert "ok image sets 1 in this storage, 0.0 GiB" in text
    assert "asks for a token" in text
    assert "secret" not in text
    left = s3.get_file_info(fs.FileSelector(folder, recursive=True))
    assert [info.base_name for info in left if info.is_file] == ["digits-8px-0123456789ab.arrow"]


@pytest.mark.slow
def test_a_wrong_token_is_refused_at_once(cluster: Cluster, tmp_path: Path) -> None:
    code, text = doctor(cluster, tmp_path, tmp_path, RAY_AUTH_TOKEN=secrets.token_hex(16))
    assert code == 2, text
    assert text.startswith("emoreg: a client must have the cluster's token")
    assert cluster.environment["RAY_AUTH_TOKEN"] not in text


@pytest.mark.slow
def test_a_node_that_lacks_things_is_one_bad_node_among_good_ones(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "broken" / "emoreg").mkdir(parents=True)
    (tmp_path / "broken" / "emoreg" / "__init__.py").write_text("raise ImportError('half installed')\n")
    (tmp_path / "file").touch()
    crippled = Cluster(cluster.address, {**cluster.environment, "PYTHONPATH": str(tmp_path / "broken")}, [])
    node = crippled.add_node(f"--address={cluster.address}", "--num-gpus=2")
    try:
        wait_for(lambda: num_nodes(cluster) == 3, node)
        code, text = doctor(cluster, tmp_path / "file" / "storage", tmp_path)
    finally:
        end([node])
    wait_for(lambda: num_nodes(cluster) == 2, cluster.nodes[0])
    assert code == 1
    for line in (
        r"bad emoreg it cannot be imported on \S+ \(\w{6}\): ImportError: half installed",
        r"ok emoreg \S+ here and on \S+ \(\w{6}\), \S+ \(\w{6}\)",
        r"bad GPUs Ray gives away 2, torch sees none on \S+ \(\w{6}\)",
        r"ok GPUs none on \S+ \(\w{6}\), \S+ \(\w{6}\)",
        r"note storage \S+ could not be tried on \S+ \(\w{6}\)",
        r"bad storage .* cannot write to .*/file/storage: NotADirectoryError",
    ):
        assert re.search(f"^{line}", text, flags=re.MULTILINE), text
    assert "3 of these would stop a study." in text


EXAMINE_LATER = """
import os, sys, ray
from emoreg.cluster.doctor import examine_nodes
from emoreg.cluster.probes import list_nodes
from emoreg.storage.files import Files
ray.init(address=sys.argv[1], log_to_driver=False)
nodes, _ = list_nodes()
print("listed", len(nodes), flush=True)
sys.stdin.readline()
for finding in examine_nodes(nodes, Files(sys.argv[2]), sys.argv[2], answer_seconds=8):
    print(finding.verdict, finding.what, finding.found, flush=True)
"""


@pytest.mark.slow
def test_a_node_killed_after_it_was_listed_does_not_hide_the_others(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(f"--address={cluster.address}")
    wait_for(lambda: num_nodes(cluster) == 3, node)
    with subprocess.Popen(
        [sys.executable, "-c", EXAMINE_LATER, cluster.address, str(tmp_path / "new")],
        env=cluster.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "listed 3\n"
        os.killpg(node.pid, signal.SIGKILL)
        text = process.communicate("\n", timeout=100)[0]
    assert re.search(r"^bad nodes \S+ \(\w{6}\): (no answer in 8 s|it is lost)", text, flags=re.MULTILINE), text
    assert f"ok storage {tmp_path}/new: written and read back on all nodes" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "from outside, `ray job submit"),
        ("ray://127.0.0.1:10001", "from outside, `ray job submit"),
        ("127.0.0.1:1", "does not answer"),
        ("nonsense", "does not answer"),
    ],
)
def test_an_address_of_no_cluster_is_refused_at_once(address: str, message: str, tmp_path: Path) -> None:
    code, text = doctor(Cluster(address, dict(os.environ), []), tmp_path, tmp_path)
    assert code == 2, text
    assert text.startswith("emoreg: --address")
    assert message in text


FORGE = """
import json, sys
from ray._raylet import GcsClient
key = (b"CLUSTER_METADATA", b"cluster")
client = GcsClient(address=sys.argv[1])
told = json.loads(client.internal_kv_get(*key))
assert told["ray_version"]
client.internal_kv_put(key[0], json.dumps({**told, "ray_version": "1.2.3"}).encode(), True, key[1])
"""


@pytest.mark.slow
def test_an_open_cluster_is_bad_and_so_is_one_of_another_ray(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    port = free_port()
    cluster = Cluster(f"127.0.0.1:{port}", {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}, [])
    try:
        begin_head(cluster, port, tmp_path_factory)
        _, text = doctor(cluster, tmp_path, tmp_path)
        assert re.search(r"^(bad|note) access \S+ asks for no token", text, flags=re.MULTILINE), text
        subprocess.run([sys.executable, "-c", FORGE, cluster.address], env=cluster.environment, check=True)
        code, text = doctor(cluster, tmp_path, tmp_path)
        assert code == 1
        assert re.search(r"^bad versions .*Ray: 1\.2\.3 .*Ray: 2\.", text, flags=re.MULTILINE), text
    finally:
        end(cluster.nodes)
