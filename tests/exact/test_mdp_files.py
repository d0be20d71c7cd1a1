"""An MDP's file may hold anything: it is read, or refused in one line, within limits."""

import contextlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import ConfigError
from surefoot.exact import MDP, find_mdp
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")

TABLE = {"transitions": np.full((2, 2, 2), 0.5), "rewards": np.ones((2, 2)), "gamma": 0.9}


def saved(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **(TABLE | arrays))
    return file.getvalue()


def read(data: bytes) -> MDP:
    Path("x.npz").write_bytes(data)
    return find_mdp("x.npz", {})


def header(shape, dtype="<f8") -> bytes:
    """An archive whose transitions claim a shape without having the numbers."""
    about = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(about).to_bytes(2, "little") + about.encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("transitions.npy", array)
        archive.writestr("rewards.npy", array)
    return file.getvalue()


@case(106)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x05\x06" + b"\x00" * 18,
        b"hello",
        saved()[:200],
        saved(gamma=np.ones(2)),
        saved(gamma="high"),
        saved(transitions=np.array([["a", "b"]])),
        saved(transitions=np.full((2, 2, 2), 0.5 + 0j)),
        saved(rewards=np.array(["2020-01-01"], "M8[D]")),
        saved(start=np.ones((2, 2, 2))),
        saved(transitions=np.zeros((0, 2, 0))),
        header((10**5, 10**4, 10**5)),
        header((2**31, 2**31, 2**31)),
        header((-1,)),
        header((2, 2, 2), "|O"),
    ],
    ids=range(15),
)
def test_other_content_is_refused_in_one_line(data):
    with pytest.raises(ConfigError) as caught:
        read(data)
    assert caught.value.name == "MDP"


@case(106)
def test_a_pipe_and_an_archive_that_unpacks_to_more_than_the_limit_are_refused(monkeypatch):
    os.mkfifo("pipe.npz")
    with pytest.raises(ConfigError, match="no plain file"):
        find_mdp("pipe.npz", {})
    monkeypatch.setattr("surefoot.exact.registry.MAX_BYTES", 2**20)
    assert len(compressed(2**21)) < 2**14
    with pytest.raises(ConfigError, match=r"holds 0\.0 GiB"):
        read(compressed(2**21))


def compressed(size: int) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **TABLE, filler=np.zeros(size, np.uint8))
    return file.getvalue()


@pytest.mark.core
@settings(max_examples=300)
@given(st.integers(0, len(saved()) - 1), st.binary(max_size=12), st.integers(0, 30), st.booleans())
def test_a_spoilt_file_is_read_or_refused(at, words, cut, at_the_end):
    data = saved()
    spoilt = data[:at] + words + (b"" if at_the_end else data[at + cut :])
    with contextlib.suppress(ConfigError):
        assert isinstance(read(spoilt), MDP)
