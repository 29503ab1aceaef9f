"""A mixture of experts in place of one feed-forward network (arXiv 1701.06538; Mixtral, arXiv 2401.04088).

A router gives each token's `top_k` experts and their weights; the token's result is their weighted sum. Families differ
in how scores become weights (kernels/program/experts.py: Route) and in whether a network that every token passes is
added (shared experts: DeepSeekMoE, arXiv 2401.06066).
"""

from dataclasses import dataclass
from typing import Literal

from tokenworks.kernels.program import Activation, Expert, ProgramBuilder, Value
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import Shapes, linear, shapes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Weights: router, of each expert E experts.E.gate, experts.E.up, experts.E.down; shared.gate, shared.up,
    shared.down, shared_gate. Fields without a word here are those of Route and Experts."""

    experts: int
    width: int
    """Of each expert's gate and up."""
    top_k: int
    activation: Activation
    normalise: bool
    score: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1.0
    corrected: bool = False
    """Choosing looks at scores plus the weight router_correction [experts]."""
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 1
    gated: bool = True
    """False: experts have no gate, the activation is of up."""
    limit: float = 0.0
    offset: float = 0.0
    biased: frozenset[str] = frozenset()
    """Which of router, gate, up, down have a bias."""
    shared: Mlp | None = None
    """What every token passes as well."""
    weighed: bool = False
    """Each expert's weight is multiplied by the weight router_expert_scales [experts]."""
    weighs_input: bool = False
    """Each expert's input is multiplied by its weight, not its result. Only with a `top_k` of 1."""
    shared_gated: bool = False
    """What `shared` makes is multiplied by sigmoid(shared_gate(x)), one number for a token."""

    def write(self, b: ProgramBuilder, name: str, x: Value, seen: Value | None = None) -> Value:
        """`seen`: what the router looks at, if that is not x."""
        logits = linear(b, name, seen or x, ("router",), self.experts, self.biased)
        routes = self._route(b, name, logits, normalise=self.normalise)
        entering = x
        if self.weighs_input:
            entering = b.scale_rows(x, routes.columns(1, 1))
            routes = self._route(b, name, logits, normalise=True)  # the same choice with a weight of 1
        made = b.experts(
            entering,
            routes,
            [self._expert(name, number) for number in range(self.experts)],
            self.width,
            self.activation,
            count=self.experts,
            limit=self.limit,
            offset=self.offset,
        )
        if self.shared is None:
            return made
        always = self.shared.write(b, f"{name}shared.", x)
        if self.shared_gated:
            gate = linear(b, name, x, ("shared_gate",), 1, frozenset())
            always = b.scale_rows(always, b.activate(gate, "sigmoid"))
        return b.add(made, always)

    def _route(self, b: ProgramBuilder, name: str, logits: Value, *, normalise: bool) -> Value:
        return b.route(
            logits,
            self.top_k,
            score=self.score,
            normalise=normalise,
            scale=self.scale,
            bias=f"{name}router_correction" if self.corrected else None,
            expert_scales=f"{name}router_expert_scales" if self.weighed else None,
            groups=self.groups,
            kept_groups=self.kept_groups,
            group_best=self.group_best,
        )

    def _expert(self, name: str, number: int) -> Expert:
        of = f"{name}experts.{number}."
        biases = {m: f"{of}{m}.bias" if m in self.biased else None for m in ("gate", "up", "down")}
        return Expert(
            number,
            f"{of}gate" if self.gated else None,
            f"{of}up",
            f"{of}down",
            biases["gate"] if self.gated else None,
            biases["up"],
            biases["down"],
        )

    def shapes(self, width: int) -> Shapes:
        maps = {"gate": (self.width, width), "up": (self.width, width), "down": (width, self.width)}
        if not self.gated:
            del maps["gate"]
        of_one = shapes_of(maps, self.biased & maps.keys())
        shapes = shapes_of({"router": (self.experts, width)}, self.biased & {"router"})
        if self.corrected:
            shapes["router_correction"] = (self.experts,)
        if self.weighed:
            shapes["router_expert_scales"] = (self.experts,)
        for number in range(self.experts):
            shapes |= {f"experts.{number}.{name}": shape for name, shape in of_one.items()}
        if self.shared is not None:
            shapes |= {f"shared.{name}": shape for name, shape in self.shared.shapes(width).items()}
        if self.shared_gated:
            shapes["shared_gate"] = (1, width)
        return shapes
