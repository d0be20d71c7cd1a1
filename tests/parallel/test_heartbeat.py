"""When a silent rank is taken for dead, and which devices a rank takes."""

import time
from types import SimpleNamespace

import pytest

from surefoot.parallel import heartbeat
from surefoot.parallel.rendezvous import _bound_to, _own_gpus


class Silent:
    """A meeting place where nobody says anything."""

    def key_value_set(self, key, value, *, allow_overwrite):
        pass

    def key_value_dir_get(self, key):
        return []


def test_silence_ends_a_rank_but_not_the_sleep_of_all_of_them(monkeypatch):
    now, ended = [0.0], []
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(heartbeat, "end_at_once", lambda fault: ended.append(str(fault)))
    beats = heartbeat.Heartbeat(Silent(), 0, 2)
    try:
        now[0] = 1000.0  # the machine was suspended
        time.sleep(2.2)
        assert not ended
        for _ in range(3):
            now[0] += 9.0
            time.sleep(1.1)
        assert "heard nothing of the coordinator, rank 0 for 20 s" in ended[0]
    finally:
        beats.stop()


@pytest.mark.parametrize(
    ("shown", "devices", "taken"),
    [("", 1, None), ("3", 1, [0]), ("0,1,2,3", 1, None), ("4,5", 2, [0, 1])],
)
def test_a_rank_that_is_shown_its_own_gpus_takes_them_all(monkeypatch, shown, devices, taken):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert _own_gpus(devices) == taken


def test_rank_0_listens_at_the_address_that_it_is_found_at():
    assert _bound_to("localhost", "1234") == "127.0.0.1:1234"
    assert _bound_to("192.0.2.1", "1234") is None, "an address of another machine"
