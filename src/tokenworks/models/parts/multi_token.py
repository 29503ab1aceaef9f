"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): a layer that guesses the token after next.

From what the head has read at a token, and the embedding of the token that follows, both normed, one map makes the
layer's input; behind the layer stand a norm of its own and the model's head. Its result takes the place of the model's
for the next guess, and so on. Of what the head reads, that is, behind the last norm: the report leaves that open, the
modelling code that comes with DeepSeek-R1's weights does not.
"""

from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.decoder import Flow, layer_shapes, write_head, write_layer
from tokenworks.models.parts.part import Shapes


def multi_token_program(config: DecoderConfig, layer: Layer) -> Program:
    """Inputs: of each token what the program or this one handed out for the token before it. Tokens of the step ->
    logits [R, vocabulary] of the token that follows, and what this step's head has read [R, width]."""
    b = ProgramBuilder()
    number = len(config.layers)
    name = f"layers.{number}."
    before = b.input(config.width)
    token = b.embed("embed", config.width, scale=config.embedding_scale)
    both = b.buffer(2 * config.width)
    b.rmsnorm(token, name + "token_norm", config.norm_epsilon, into=both.columns(0, config.width))
    b.rmsnorm(before, name + "before_norm", config.norm_epsilon, into=both.columns(config.width, config.width))
    flow = Flow(b.linear(both, [name + "join"], config.width), None)
    write_layer(b, config, number, layer, flow, selects=True)
    x = b.rmsnorm(flow.stream, name + "head_norm", config.norm_epsilon)
    return b.finish(write_head(b, config, x), hidden=x)


def multi_token_shapes(config: DecoderConfig, layer: Layer) -> Shapes:
    """Beside the embeddings and the head, which are the model's."""
    shapes: Shapes = {f"{norm}_norm": (config.width,) for norm in ("token", "before", "head")}
    shapes |= {"join": (config.width, 2 * config.width), **layer_shapes(config, layer)}
    return {f"layers.{len(config.layers)}.{name}": shape for name, shape in shapes.items()}


def multi_token_names(in_layer: str, **theirs: str) -> dict[str, str]:
    """Canonical names -> names in the file: those of safetensors files where `theirs` says nothing else."""
    names = {"token_norm": "enorm", "before_norm": "hnorm", "join": "eh_proj", "head_norm": "shared_head.norm"} | theirs
    return {f"layers.{{}}.{ours}": f"{in_layer}{name}.weight" for ours, name in names.items()}
