"""The essay on the road from TRPO to PPO, claim by claim, computed and judged."""

import base64
import html
import json
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from surefoot import exact as t
from surefoot.exact.claims import bound, ppo, region, surrogate, trpo
from surefoot.exact.claims.claim import Claim, right, solved
from surefoot.exact.line import Ray, landmarks

CLAIMS: tuple[Callable[[], Claim], ...] = (
    *surrogate.CLAIMS,
    *bound.CLAIMS,
    *region.CLAIMS,
    *trpo.CLAIMS,
    *ppo.CLAIMS,
)
"""Every claim, in the essay's order."""

PRIMER = """\
An **environment** is in some state s. An **action** a is taken, a **reward** is paid, the state
changes, and so on; the probabilities of all this are known here (such an environment is called a
finite MDP). A **policy** π(a|s) is a rule for acting: the probability of each action in each state.
Rewards to come count less: one that is t steps away is multiplied by γᵗ, with a discount γ below 1;
1/(1-γ), the sum of all these weights, is called the horizon. The **return** η(π) is the discounted
sum of rewards that a policy collects on average; it is what we want to be large.

Three quantities describe a policy. V(s) is the return from state s on. The **advantage** A(s, a) is
how much better it is to take a now, and to follow the policy after that, than to follow it at once;
it averages to 0 over the policy's own actions. ρ(s) says **how often** a state is visited, a visit
after t steps counting γᵗ; it sums to the horizon.

A policy has **parameters** θ. For two actions one number will do: θ is the log-odds of the second
action, whose probability is p = 1 / (1 + exp(-θ)). For more, each action has such a number, its
logit, and its probability is in proportion to exp(logit). Where each state has parameters of its
own we say so; where all states share them, moving one state moves the others.

Everything below is about one question. We have data of an old policy π and want a better one, π'.
The data tells us A and ρ of the *old* policy. So we look at the **surrogate**

L(π') = η(π) + Σₛ ρ(s) Σₐ π'(a|s) A(s, a)

and take a step that makes it large. But what the new policy really returns is the same sum with
*its own* visits ρ' in the place of ρ (claim 4 checks this). How far can we go before that matters?

Distance between policies is measured by the **Kullback-Leibler divergence** of a state,
KL(π ‖ π') = Σₐ π(a|s) log(π(a|s) / π'(a|s)), in nats: 0 for equal policies, 0.01 for very similar
ones, 1 for quite different ones. The mean KL is its mean over the states that the old policy
visits, in the proportion of ρ; the largest is that of the worst state. **Total variation** (TV) is
the largest difference between the probabilities that two policies give to any set of actions. The
**Fisher matrix** F turns a small step x of the parameters into KL: mean KL is about half of xᵀFx.

Four rules for choosing the step appear. *Vanilla policy gradient* follows the gradient of L for
some length. The *natural gradient* does the same in a geometry in which lengths are KL. *TRPO*
maximises L among policies whose mean KL from the old one is at most δ. *PPO* maximises a clipped L,
which stops rewarding an action once the ratio of its new to its old probability has passed 1 ± ε,
with ε = 0.2. An **exact** update is what a rule does with all the data and with its problem solved:
nothing is sampled, and a maximum is followed until it is reached. The rules that train in practice
approximate this with samples and a few hundred small steps.

The trials use a few environments: the corridor and the ridge, described where they appear;
FrozenLake, a slippery grid with holes and one goal; and **random** environments, whose transitions
and rewards are drawn by lot, with 5 states and 3 actions where nothing else is said, and pairs of
random policies on them, from almost equal to unrelated. Random environments are benign: what fails
on them fails everywhere, what holds on them need not hold elsewhere.

Numbers are exact, but for rounding: they come from solving small environments, not from sampling
them. Only where it is said is a sample involved. A verdict is *holds*, *holds when* something is
given, or *fails*.
"""

UNTRIED = """\
Sentences of the essay that no computation can judge, or none here does: that approximate theory
frees one to use whatever works; that PPO runs on any framework and parallelises trivially; that it
was made because the guarantee was broken (the paper gives other reasons); that TRPO is elegant; and
that many people use PPO without understanding it.
"""


class Judged(NamedTuple):
    """A claim with its number."""

    number: int
    claim: Claim

    @property
    def command(self) -> str:
        """What recomputes it."""
        return f"surefoot essay --claim {self.number}"


def judge(numbers: Sequence[int] | None = None) -> Iterator[Judged]:
    """The claims with these numbers, from 1 on, or all: each computed when it is asked for."""
    for number in numbers or range(1, len(CLAIMS) + 1):
        yield Judged(number, CLAIMS[number - 1]())


def as_text(judged: Judged) -> str:
    """A claim for a terminal."""
    claim = judged.claim
    parts = [
        f"{judged.number}. {claim.title}",
        _wrapped("essay:   ", claim.says),
        _wrapped("trial:   ", claim.experiment),
        _wrapped("result:  ", claim.finding),
        _wrapped("verdict: ", claim.verdict),
    ]
    if claim.command:
        parts.append(_wrapped("see:     ", claim.command))
    return "\n".join(textwrap.indent(part, "  " if i else "") for i, part in enumerate(parts))


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(text, 92, initial_indent=head, subsequent_indent=" " * len(head))


def as_record(judged: Judged) -> dict[str, Any]:
    """A claim for a program."""
    claim = judged.claim
    return {
        "claim": judged.number,
        "title": claim.title,
        "says": claim.says,
        "finding": claim.finding,
        "verdict": claim.verdict,
        "numbers": dict(claim.numbers),
    }


def as_markdown(judged: Sequence[Judged], pictures: Path) -> str:
    """The claims as a page; pictures go into the folder `pictures`, beside the page."""
    parts = []
    for each in judged:
        claim = each.claim
        lines = [
            f"## {each.number}. {claim.title}",
            f"> {claim.says}",
            claim.experiment,
            claim.finding,
            f"**Verdict: {claim.verdict}.**",
        ]
        if claim.draw:
            file = pictures / f"claim-{each.number}.png"
            claim.draw(file)
            lines.append(f"![{claim.caption}]({pictures.name}/{file.name})\n\n*{claim.caption}*")
        commands = f"`{each.command}`" + (f", `{claim.command}`" if claim.command else "")
        lines.append(f"Recompute: {commands}")
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_page(judged: Sequence[Judged]) -> str:
    """The claims as one HTML page that needs nothing else; two pictures follow the reader's hand.

    Every value that they show is computed here; the page only looks it up.
    """
    template = Template((Path(__file__).parent / "essay.html").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        sections = "\n".join(_section(each, Path(folder)) for each in judged)
    walks = {"corridor": _walk(t.corridor(), 0.02, 0.28), "ridge": _walk(t.ridge(), 0.02, 0.42)}
    return template.substitute(
        claims=sections,
        primer=_paragraphs(PRIMER),
        untried=_paragraphs(UNTRIED),
        data=json.dumps(walks, allow_nan=False),
    )


def _section(judged: Judged, folder: Path) -> str:
    claim, say = judged.claim, html.escape
    picture = ""
    if claim.draw:
        file = folder / f"{judged.number}.png"
        claim.draw(file)
        data = base64.b64encode(file.read_bytes()).decode()
        picture = (
            f'<figure><img alt="{say(claim.caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{say(claim.caption)}</figcaption></figure>"
        )
    kind = claim.verdict.split()[0].rstrip(";:,.")
    kind = "when" if claim.verdict.startswith("holds when") else kind
    command = judged.command + (f"\n{claim.command}" if claim.command else "")
    return (
        f'<section id="claim-{judged.number}"><h2>{judged.number}. {say(claim.title)}</h2>'
        f"<blockquote>{say(claim.says)}</blockquote><p>{say(claim.experiment)}</p>"
        f"<p>{say(claim.finding)}</p>"
        f'<p class="verdict {kind}">{say(claim.verdict)}</p>{picture}'
        f"<pre>{say(command)}</pre></section>"
    )


def _paragraphs(text: str) -> str:
    """The primer's few marks as HTML."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text, quote=False), flags=re.DOTALL)
    text = re.sub(r"\*(.+?)\*", r"<i>\1</i>", text, flags=re.DOTALL)
    return "\n".join(f"<p>{part}</p>" for part in text.strip().split("\n\n"))


def _walk(mdp: t.MDP, low: float, high: float) -> dict[str, Any]:
    """What holds at every p from `low` to `high`, for the old policy that the MDP usually has."""
    case = solved(mdp)
    weights, p_old = t.state_weights(mdp, case.old), float(case.old.policy[0, 1])
    steps = {rule: float(case.after(rule).policy[0, 1]) for rule in ("trpo", "ppo")}
    grid = np.unique([*np.linspace(low, high, 341), p_old, *steps.values()])
    rows = []
    for p in grid:
        new = t.solve(mdp, right(float(p), mdp.num_states))
        rows.append(
            (
                p,
                new.eta,
                t.surrogate(case.old, new.policy),
                t.clipped(mdp, case.old, new.policy, clip_eps=0.2),
                float(weights @ t.row_kl(case.old.policy, new.policy)),
                p / p_old,
                (1 - mdp.gamma) * float(new.visits[-1]),
            )
        )
    names = ("p", "eta", "surrogate", "clipped", "kl", "ratio", "edge")
    columns = np.round(np.array(rows).T, 6).tolist()
    ray = Ray(mdp, case.old, case.after("trpo").policy)
    half = landmarks(ray).half
    last = {"corridor": "at the edge", "ridge": "on the crest"}[mdp.name]
    more = {"p_old": p_old, "steps": steps, "last": last}
    more["half"] = None if half is None else float(ray.at(half)[0, 1])
    return dict(zip(names, columns, strict=True)) | more
