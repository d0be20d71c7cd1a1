"""When a rank counts as lost, which devices a rank takes, and where rank 0 listens."""

import time
from types import SimpleNamespace

import pytest

from surefoot.parallel import heartbeat
from surefoot.parallel.rendezvous import _bind_address, _own_gpus


class Silent:
    """A key-value store without heartbeats."""

    def key_value_set(self, key, value, *, allow_overwrite):
        pass

    def key_value_dir_get(self, key):
        return []


@pytest.mark.thorough
def test_a_missing_heartbeat_ends_a_rank_but_suspending_the_machine_does_not(monkeypatch):
    now, ended = [0.0], []
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(heartbeat, "abort_rank", lambda error: ended.append(str(error)))
    beats = heartbeat.Heartbeat(Silent(), 0, 2)
    try:
        now[0] = 1000.0  # the machine was suspended
        time.sleep(2.2)
        assert not ended
        for _ in range(3):
            now[0] += 9.0
            time.sleep(1.1)
        assert "no heartbeat from the coordinator, rank 0, for 20 s" in ended[0]
    finally:
        beats.stop()


@pytest.mark.parametrize(
    ("visible", "devices", "indices"),
    [("", 1, None), ("3", 1, [0]), ("0,1,2,3", 1, None), ("4,5", 2, [0, 1])],
)
def test_a_rank_takes_all_gpus_that_are_visible_to_it_alone(monkeypatch, visible, devices, indices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _own_gpus(devices) == indices


def test_rank_0_listens_at_its_own_address_alone():
    assert _bind_address("127.0.0.1:1234") == "127.0.0.1:1234"
    assert _bind_address("192.0.2.1:1234") is None, "an address of another machine"
