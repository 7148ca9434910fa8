"""Forward passes over a part of a model: some blocks, some tokens, and what rows have in common only once.

Every pass here gives the numbers of the whole transformers model, up to rounding; callers need not know how
(docs/methods/forward.md). One builds on the other in this order:

* ``prefix_tree``: rows of tokens as *packs*, in which what rows begin with in common is there once, with positions and mask;
* ``blocks``: run blocks *first* … *last* of the model's own modules, on padded rows or on packs;
* ``llama_fused``: the same blocks of Llama-like models written out by hand, forward and backward; ``llama_parts`` has their maps
  and norms, ``query_positions`` which tokens a block computes, ``model_guard`` notices hooks that the modules would have obeyed;
* ``device_blocks``: on an accelerator, the blocks that a layout describes, in few launches; ``device_parts`` has their maps, norms
  and activations, ``device_attention`` what they look at, ``token_grid`` where tokens lie;
* ``fused``: which of the two fits the device; ``given``: what either is run on;
* ``resume``: compute once what no change of a block's output can reach, and run the rest again and again;
* ``positions``: final states at the tokens where something is asked, for a batch of rows;
* ``head``: log-probabilities out of final states, without writing the table of logits;
* ``matmul``: products of a few rows with a large matrix, in the faster order.
"""
