"""The tasks, their bars, and what differs between them: the discount alone."""

from typing import NamedTuple


class Task(NamedTuple):
    """One task of the table.

    Attributes:
        env: its id.
        actions: the dimension of its action space, d.
        gamma: the discount, from the kind of task: see `docs/mujoco.md`.
        bar: the mean return to reach; None beyond the table.
        tuning: whether settings were compared on it.
    """

    env: str
    actions: int
    gamma: float
    bar: float | None
    tuning: bool = False


FALLING, LIMITED, SLOW = 0.995, 0.99, 0.9999

TASKS = (
    Task("HalfCheetah-v5", 6, LIMITED, 5784, tuning=True),
    Task("Hopper-v5", 3, FALLING, 3450, tuning=True),
    Task("Walker2d-v5", 6, FALLING, 4502, tuning=True),
    Task("Ant-v5", 8, FALLING, 3554, tuning=True),
    Task("Swimmer-v5", 2, SLOW, 359),
    Task("Reacher-v5", 2, LIMITED, -4.1),
    Task("InvertedPendulum-v5", 1, FALLING, 1000),
    Task("InvertedDoublePendulum-v5", 1, FALLING, 9359),
    Task("Humanoid-v5", 17, FALLING, 1030),
    Task("Pusher-v5", 7, LIMITED, None),
    Task("HumanoidStandup-v5", 17, LIMITED, None),
)
BY_ENV = {task.env: task for task in TASKS}
TUNING = tuple(task for task in TASKS if task.tuning)
NINE = tuple(task for task in TASKS if task.bar is not None)
