"""The numbers of docs/essay.md by a second solver: NumPy alone, and nothing of `surefoot.exact`.

Tables are rebuilt from what the page says of them, random ones with the page's own seeds. Values
come from an inverse, maxima from bisection, golden section and plain ascent, training rules from
their published formulas.
"""

from tests.support.essay.bound import CLAIMS as BOUND
from tests.support.essay.ppo import CLAIMS as PPO
from tests.support.essay.surrogate import CLAIMS as SURROGATE
from tests.support.essay.trpo import CLAIMS as TRPO

SECOND = {claim.__name__: claim for part in (SURROGATE, BOUND, TRPO, PPO) for claim in part}
"""Functions that compute a claim's numbers, by the name of the claim."""
