"""A stand-in of Ray for a driver's process, and functions to call there; free of JAX."""

import os
import time
from pathlib import Path

RAY = """
import os, subprocess, time
from pathlib import Path

def init(**options):
    subprocess.Popen(["sleep", "600"], start_new_session=True)  # as a worker's process
    how = os.environ.get("RAY_STAND_IN", "")
    if how == "raise":
        raise Exception("no room in /dev/shm")
    if how == "hang":
        time.sleep(600)

def put(value):
    pass

def nodes():
    while Path("silent").exists():
        time.sleep(0.1)

def shutdown():
    pass

def cluster_resources():
    return {"CPU": 3.0}
"""


class Counter:
    """An object that a driver holds."""

    def __init__(self, ray, first):
        self.value = first + ray.cluster_resources()["CPU"]

    def add(self, number):
        self.value += number
        return self.value


def die(ray):
    """End as Ray's native code ends its driver."""
    os.write(2, b"\x1b[33m(raylet)\x1b[0m Raylet is terminated.\n    parts of its log\n")
    os._exit(1)


def wait(ray, seconds):
    time.sleep(seconds)


def fall_silent(ray):
    Path("silent").touch()


def refuse(ray):
    from surefoot.errors import EnvCrashError

    raise EnvCrashError("of the driver", index=3)
