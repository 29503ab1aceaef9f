"""Gemma 4's layers with experts: a network that every token passes, and experts beside it, each between norms of its
own. The router sees the residual stream, and its choice is weighed by a factor for each expert."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoNetworks:
    """Weights: those of both; mlp_norm, mlp_made_norm; experts_norm, experts_made_norm; router_scale."""

    mlp: Mlp
    experts: Mixture
    norm_epsilon: float

    def write(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        """x is not normed yet."""

        def norm(value: Value, weight: str) -> Value:
            return b.rmsnorm(value, name + weight, self.norm_epsilon)

        always = norm(self.mlp.write(b, name, norm(x, "mlp_norm")), "mlp_made_norm")
        seen = norm(x, "router_scale")
        chosen = self.experts.write(b, name, norm(x, "experts_norm"), seen)
        return b.add(always, norm(chosen, "experts_made_norm"))

    def shapes(self, width: int) -> Shapes:
        norms = ("mlp_norm", "mlp_made_norm", "experts_norm", "experts_made_norm", "router_scale")
        return {**self.mlp.shapes(width), **self.experts.shapes(width), **dict.fromkeys(norms, (width,))}
