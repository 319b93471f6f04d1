"""Word embeddings as part of a router's input."""

import mesh_tensorflow as mtf

from mtf_moe import knobs
from mtf_moe import operations


def add_to_gate_inputs(gate_inputs, token_embeddings, mode):
  """Lets the router see the word itself, beside its contextual state.

  Args:
    gate_inputs: float32 [..., s, m].
    token_embeddings: a Tensor [..., s, m] of any floating-point type.
    mode: one of hparams.WORD_EMBED_MODES: "concat" beside the state, "add" to
      it, or "embed_only" in its place. With "_stop_grad" the router does not
      train the embeddings.

  Returns:
    float32 [..., s, m], or [..., s, 2m] where concatenated

  Raises:
    ValueError: if there are no embeddings.
  """
  if token_embeddings is None:
    raise knobs.Mistake("word_embed_mode", mode, (
        "needs word embeddings, and the caller passed none: pass "
        "token_embeddings, or set it to None."))
  embeddings = mtf.to_float(token_embeddings)
  if mode.endswith("_stop_grad"):
    embeddings = operations.stop_gradient(embeddings)
  if mode == "embed_only":
    return embeddings
  if mode.startswith("add"):
    return gate_inputs + embeddings
  input_dim = gate_inputs.shape.dims[-1]
  return mtf.concat([gate_inputs, embeddings], input_dim.name)
