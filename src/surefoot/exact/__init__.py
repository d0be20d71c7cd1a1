"""Finite MDPs solved exactly, and every rule's update without noise."""

from surefoot.exact.bounds import BOUNDS, gap_bounds, guaranteed_returns
from surefoot.exact.families import (
    LinearSoftmax,
    StartingPoint,
    TabularSoftmax,
    fisher_matrix,
    logits_of,
    starting_point,
)
from surefoot.exact.mdp import MDP, corridor, make_mdp, random_mdp, ridge
from surefoot.exact.path import UpdatePath, update_path, walk
from surefoot.exact.registry import find_mdp
from surefoot.exact.report import ExactCurve, UpdateReport, learning_curve, report_update
from surefoot.exact.solution import (
    Policy,
    SolvedPolicy,
    episode_limit,
    kl_per_state,
    optimal_policy,
    solve,
    time_limited_optimum,
    time_limited_return,
    tv_per_state,
    visitation_tv,
)
from surefoot.exact.updates import StepSizes, find_rule, updated

__all__ = [
    "BOUNDS",
    "MDP",
    "ExactCurve",
    "LinearSoftmax",
    "Policy",
    "SolvedPolicy",
    "StartingPoint",
    "StepSizes",
    "TabularSoftmax",
    "UpdatePath",
    "UpdateReport",
    "corridor",
    "episode_limit",
    "find_mdp",
    "find_rule",
    "fisher_matrix",
    "gap_bounds",
    "guaranteed_returns",
    "kl_per_state",
    "learning_curve",
    "logits_of",
    "make_mdp",
    "optimal_policy",
    "random_mdp",
    "report_update",
    "ridge",
    "solve",
    "starting_point",
    "time_limited_optimum",
    "time_limited_return",
    "tv_per_state",
    "update_path",
    "updated",
    "visitation_tv",
    "walk",
]
