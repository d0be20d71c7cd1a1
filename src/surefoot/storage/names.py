"""Names of files and folders."""

import re


def folder_name(env_id: str) -> str:
    """An environment's id as one part of a path, such as `gymnax_CartPole-v1`."""
    return re.sub(r"[^\w.-]", "_", env_id)
