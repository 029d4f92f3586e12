"""Which actor gets which devices, and what is said when a cluster has too few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gopd.cluster import nodes
from gopd.cluster.placement import Plan, plan
from gopd.errors import BadInput
from gopd.recipe_file import parse_recipe
from runs import Tree, opd_tree


def placed(tmp_path: Path, *, gpu: bool = True, **sections: Any) -> Plan:
    teachers = dict.fromkeys(("a", "b"), tmp_path)
    return plan(parse_recipe(opd_tree(tmp_path, tmp_path, teachers, **sections)), gpu=gpu)


VLLM: Tree = {"engine": "vllm", "vllm": {"tensor_parallel": 2}}
SIZES: Tree = {"learner_ranks": 4, "sampler_replicas": 3, "scorers_per_teacher": 2}


def test_apart_every_actor_has_devices_of_its_own(tmp_path: Path) -> None:
    found = placed(tmp_path, cluster=SIZES, sampler=VLLM)
    assert found.total("GPU") == 4 + 3 * 2 + 2 * 2
    seats = [*found.learner, *found.samplers, *found.scorers["a"], *found.scorers["b"]]
    assert sorted(seat.bundle for seat in seats) == list(range(len(found.bundles)))
    assert all(len(seat.devices) == found.bundles[seat.bundle]["GPU"] for seat in seats)
    assert [len(seat.devices) for seat in found.samplers] == [2] * 3 and not found.shared
    assert {name: len(seats) for name, seats in found.scorers.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(("sampler", "devices"), [({}, 4), (VLLM, 6)])
def test_together_the_actors_of_a_role_do_not_share(tmp_path: Path, sampler: Tree, devices: int) -> None:
    found = placed(tmp_path, cluster=SIZES | {"colocate": True}, sampler=sampler)
    assert found.shared and found.total("GPU") == devices
    for role in (found.learner, found.samplers, [*found.scorers["a"], *found.scorers["b"]]):
        used = [(seat.bundle, device) for seat in role for device in seat.devices]
        assert len(used) == len(set(used))
        assert all(device < found.bundles[bundle]["GPU"] for bundle, device in used)


def test_without_gpus_a_device_is_a_core(tmp_path: Path) -> None:
    found = placed(tmp_path, gpu=False)
    assert found.bundles == [{"CPU": 1}] * 4 and found.total("GPU") == 0


def test_too_few_devices_are_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.ray, "cluster_resources", lambda: {"GPU": 8.0, "CPU": 64.0})
    monkeypatch.setattr(
        nodes.ray, "nodes", lambda: [{"Alive": True, "Resources": {"GPU": 4.0, "CPU": 32.0}}] * 2
    )
    nodes.check_devices(placed(tmp_path, cluster={"learner_ranks": 4}))
    with pytest.raises(
        BadInput, match=r"has 8 GPUs, and the recipe needs 14: 4 learner ranks, 3 samplers of 2 dev"
    ):
        nodes.check_devices(placed(tmp_path, cluster=SIZES, sampler=VLLM))
    wide: Tree = {"engine": "vllm", "vllm": {"tensor_parallel": 5}}
    with pytest.raises(BadInput, match=r"no node has .* for one engine; lower sampler.vllm.tensor_parallel"):
        nodes.check_devices(placed(tmp_path, cluster={}, sampler=wide))


def test_a_small_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 64 * 2**20})
    monkeypatch.setattr(nodes.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BadInput, match=r"/dev/shm has 64 MiB free.*--shm-size"), nodes.joined("local", 1):
        pass


def test_a_cluster_that_is_not_there_is_said() -> None:
    for address in ("127.0.0.1:9", "nowhere"):
        with pytest.raises(BadInput, match="no Ray cluster to join"), nodes.joined(address, 1):
            pass


def test_an_untried_version_of_ray_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nodes, "version", lambda name: "2.9.3")
    nodes._check_version()
    assert "ray is 2.9.3 here, and this was tested with 2.60 only" in caplog.text
