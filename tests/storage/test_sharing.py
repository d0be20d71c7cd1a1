"""What comes from others, and what goes to them."""

import json
import os
import sys
from pathlib import Path

import pytest

import surefoot as sf
from tests.support.broken_envs import Sound
from tests.support.cases import case
from tests.support.shell import SMALL, in_a_shell

pytestmark = pytest.mark.usefixtures("empty_directory")

SOUND = "broken_envs:Sound"


@case(84)
@case(85)
def test_no_network_and_no_port(tmp_path):
    """Every socket that is made or bound is noted; only pairs within the process are."""
    notes = tmp_path / "notes"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def note(name, given):\n"
        "    if name in ('socket.bind', 'socket.connect', 'socket.getaddrinfo'):\n"
        f"        open({str(notes)!r}, 'a').write(f'{{name}} {{given}}\\n')\n"
        "sys.addaudithook(note)\n"
        "import socket\n"
        "try:\n"
        "    socket.create_connection(('127.0.0.1', 1), 1)\n"
        "except OSError:\n"
        "    pass\n"
        f"import os; os.rename({str(notes)!r}, {str(tmp_path / 'control')!r})\n"
    )
    words = ["train", SOUND, "vpg", "--steps", "64", *SMALL, "--out", "run", "--json"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1] / "support")])
    done = in_a_shell(*words, "--vectorization", "cores", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    # Every Python began with a connection of its own, which was noted.
    assert "socket.connect" in (tmp_path / "control").read_text()
    assert not notes.exists(), notes.read_text()


@case(86)
@pytest.mark.parametrize("address", ["https://example.org/run", "hf://someone/run", "s3://run"])
def test_a_run_from_an_address(command, address):
    for words in (["evaluate"], ["resume"], ["probe"], ["report"]):
        ended = command(*words, address)
        assert ended.code == 6, words
        assert "is an address: runs are read from directories only" in ended.line


@case(87)
def test_a_run_that_names_code(train, command):
    Path("planted.py").write_text("open('owned', 'w').close()\n")
    assert train(SOUND).code == 0
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps(config | {"env": "planted:make"}))
    for words in (["evaluate"], ["resume"], ["probe"]):
        ended = command(*words, "run")
        assert ended.code == 6
        assert "name it again: --env planted:make" in ended.line
    assert not Path("owned").exists()
    assert "planted" not in sys.modules


class Shouting(Sound):
    """Tells control characters in everything that is text."""

    def broken(self, *given):
        raise ValueError("\x1b[2J\x1b]0;title\x07\r\nsurefoot: all is well")


@case(88)
def test_control_characters_and_secrets(capsys, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2")
    with pytest.raises(sf.SurefootError) as caught:
        sf.train(Shouting, sf.VPG(), steps=256, out="run", train=sf.Train(num_envs=2, num_steps=16))
    assert "all is well" in str(caught.value)
    from surefoot.cli.parser import main

    assert main(["train", "No\x1b[31mSuch\x07-v0"]) == 2
    said = capsys.readouterr()
    assert not any(ord(c) < 32 and c != "\n" for c in said.err + said.out)
    for file in Path("run").rglob("*"):
        if file.is_file():
            assert b"hunter2" not in file.read_bytes()
