"""One ONNX graph for a whole translation, its refinement steps included, made of the pieces of `onnx_export`.

What is unusual: the posterior, and what makes a translation of latents, are the body of a loop, whose first round takes
the prior's means for the posterior's, so that each product with a weight is there once. The loop ends when every
sentence has repeated itself; those that have leave the batch. A cycle is found and left as in `refine`. Its body reads
the encoded source from outside. With alignment "ctc", the cells are collapsed in it. Batch, lengths and number of steps
are dynamic:

    input_ids, attention_mask   (batch, source_length) int64
    num_refinement_steps        () int64
    max_length                  () int64, from 1 to `max_position_embeddings`
    candidates                  (batch, k) int64, target tokens that are tried first, `Shortlist.candidates_of`
    min_confidence              () float32, log probability among the candidates from which the best of them is taken;
                                more than 0 asks for the whole vocabulary
    sequences                   (batch, longest translation) int64, padded, repetitions not removed
    num_steps_taken             (batch,) int64
    num_positions               (2,) int64, over all passes: positions of the decoder, and those of them for which the
                                whole vocabulary was computed; negative if numbers were not finite
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # onnx is needed for the export alone
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

OPSET = 20
DOMAIN = "lvnar_hf"  # of an operation that `assemble` puts in; no graph has it in the end

_PAD_LOGITS = """
      pads = Constant <value_ints = [0, 0, 0, {num_missing}]> ()
      lowest = Constant <value_float = -3.4e38> ()
      logits = Pad (products_and_padding, pads, lowest)
"""


def _likeliest_where_unsure(vocab_size: int) -> str:
    """The likeliest token of the whole vocabulary, at positions that are unsure; none is computed where none is.

    In two stages, since ONNX Runtime's ArgMax is several times slower than its ReduceMax; the first one of equals. A
    vocabulary that has no divisor for it is padded.
    """
    width = max(divisor for divisor in range(1, 257) if vocab_size % divisor == 0)
    if width < 32 < vocab_size:
        width = 256
    num_missing = -vocab_size % width
    return f"""
<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">
LikeliestWhereUnsure (targets, is_unsure, states, weight, of_padding) => (merged) {{
  unsure_numbers = Cast <to = 7> (is_unsure)
  num_unsure = ReduceSum <keepdims = 0> (unsure_numbers)
  is_any = Cast <to = 9> (num_unsure)
  merged = If (is_any) <
    then_branch = whole () => (likeliest_merged) {{
      positions = NonZero (is_unsure)
      rows = Transpose <perm = [1, 0]> (positions)
      unsure_states = GatherND (states, rows)
      transposed = Transpose <perm = [1, 0]> (weight)
      products = MatMul (unsure_states, transposed)
      {"products_and_padding" if num_missing else "logits"} = Add (products, of_padding)
      {_PAD_LOGITS.format(num_missing=num_missing) if num_missing else ""}
      parts_shape = Constant <value_ints = [0, {-(-vocab_size // width)}, {width}]> ()
      parts = Reshape (logits, parts_shape)
      last = Constant <value_ints = [2]> ()
      highest = ReduceMax <keepdims = 0> (parts, last)
      best_part = ArgMax <axis = 1, keepdims = 1> (highest)
      best_logits = GatherND <batch_dims = 1> (parts, best_part)
      best_place = ArgMax <axis = 1, keepdims = 1> (best_logits)
      part_width = Constant <value_int = {width}> ()
      first_of_part = Mul (best_part, part_width)
      likeliest = Add (first_of_part, best_place)
      axis = Constant <value_ints = [1]> ()
      likeliest_flat = Squeeze (likeliest, axis)
      likeliest_merged = ScatterND (targets, rows, likeliest_flat)
    }},
    else_branch = nothing () => (as_it_was) {{
      as_it_was = Identity (targets)
    }}
  >
}}
"""


# What a round of the loop does around the exported pieces, which see only the sentences that have not stopped. In the
# first one all targets are padding, so that no sentence is as it was.
_AROUND_PASS = """
body (int64 iteration, bool going, int64[b, l] targets, bool[b] active, int64[b] taken, int64[2] positions,
      int64[b, k] landmark, int64 landmark_step, int64 next_landmark, int64[b] ends)
  => (bool going_on, int64[b, m] merged, bool[b] still_active, int64[b] taken_now, int64[2] positions_now,
      int64[b, m] landmark_now, int64 landmark_step_now, int64 next_landmark_now, int64[b] ends_now) {
  positions_now = Add (positions, pass_positions)
  axis = Constant <value_ints = [1]> ()
  active_numbers = Cast <to = 7> (active)
  active_positions = NonZero (active)
  active_rows = Transpose (active_positions)
  no_padding = Constant <value_ints = [0, 0, 0]> ()
  padding = Constant <value_int = PADDING> ()
  old_length = Shape <start = 1> (targets)
  new_length = Shape <start = 1> (new_targets)
  landmark_length = Shape <start = 1> (landmark)
  length = Max (old_length, new_length, landmark_length)
  old_missing = Sub (length, old_length)
  new_missing = Sub (length, new_length)
  old_pads = Concat <axis = 0> (no_padding, old_missing)
  new_pads = Concat <axis = 0> (no_padding, new_missing)
  old = Pad (targets, old_pads, padding)
  new = Pad (new_targets, new_pads, padding)
  merged = ScatterND (old, active_rows, new)
  equal = Equal (merged, old)
  different = Not (equal)
  different_numbers = Cast <to = 7> (different)
  num_different = ReduceSum <keepdims = 0> (different_numbers, axis)
  changed = Cast <to = 9> (num_different)
  landmark_missing = Sub (length, landmark_length)
  landmark_pads = Concat <axis = 0> (no_padding, landmark_missing)
  old_landmark = Pad (landmark, landmark_pads, padding)
  equal_landmark = Equal (merged, old_landmark)
  away = Not (equal_landmark)
  away_numbers = Cast <to = 7> (away)
  num_away = ReduceSum <keepdims = 0> (away_numbers, axis)
  is_away = Cast <to = 9> (num_away)
  period = Sub (iteration, landmark_step)
  steps_left = Sub (all_steps, iteration)
  steps_more = Mod (steps_left, period)
  end = Add (iteration, steps_more)
  ends_of_cycles = Where (is_away, ends, end)
  ends_now = Where (changed, ends_of_cycles, iteration)
  goes_on = Greater (ends_now, iteration)
  is_landmark = Equal (iteration, next_landmark)
  landmark_now = Where (is_landmark, merged, old_landmark)
  landmark_step_now = Where (is_landmark, iteration, landmark_step)
  twice = Add (iteration, iteration)
  next_step = Max (twice, one)
  next_landmark_now = Where (is_landmark, next_step, next_landmark)
  still_active = And (active, goes_on)
  taken_now = Add (taken, active_numbers)
  still_numbers = Cast <to = 7> (still_active)
  num_still = ReduceSum <keepdims = 0> (still_numbers)
  going_on = Cast <to = 9> (num_still)
}
"""

# What stands before and after the loop.
_AROUND_LOOP = """
main (int64[b, s] input_ids, int64[b, s] attention_mask, int64 num_refinement_steps, int64 max_length,
      int64[b, k] candidates, float min_confidence)
  => (int64[b, t] sequences, int64[b] num_steps_taken, int64[2] num_positions) {
  batch = Shape <start = 0, end = 1> (input_ids)
  one = Constant <value_int = 1> ()
  all_steps = Identity (num_refinement_steps)
  num_passes = Add (all_steps, one)
  all_active = ConstantOfShape <value = bool[1] {1}> (batch)
  before_the_first = ConstantOfShape <value = int64[1] {-1}> (batch)
  one_column = Constant <value_ints = [1]> ()
  first_shape = Concat <axis = 0> (batch, one_column)
  first_targets = ConstantOfShape <value = int64[1] {PADDING}> (first_shape)
  no_positions = Constant <value_ints = [0, 0]> ()
  begin = Constant <value = bool {1}> ()
  no_landmark_step = Constant <value_int = -1> ()
  first_landmark = Constant <value_int = 0> ()
  first_ends = Expand (all_steps, batch)
  last_targets, last_active, num_steps_taken, num_positions, last_landmark, last_step, last_next, last_ends =
    Loop <body = placeholder () => () {}>
      (num_passes, begin, first_targets, all_active, before_the_first, no_positions,
       first_targets, no_landmark_step, first_landmark, first_ends)
  zeros = Constant <value_ints = [0]> ()
  ones = Constant <value_ints = [1]> ()
  pad_token_id = Constant <value_int = PADDING> ()
  is_padding = Equal (last_targets, pad_token_id)
  is_token = Not (is_padding)
  tokens = Cast <to = 7> (is_token)
  lengths = ReduceSum <keepdims = 0> (tokens, ones)
  longest = ReduceMax <keepdims = 1> (lengths)
  sequences = Slice (last_targets, zeros, longest, ones)
}
"""


def assemble(
    source: "ModelProto", posterior: "ModelProto", translation: "ModelProto", pad_token_id: int, vocab_size: int
) -> "ModelProto":
    """The pieces and what is around them as one onnx.ModelProto; the vocabulary is that of the targets."""
    import onnx

    make_node = onnx.helper.make_node
    main, body = (
        onnx.parser.parse_graph(text.replace("PADDING", str(pad_token_id))) for text in (_AROUND_LOOP, _AROUND_PASS)
    )
    weights: dict[bytes, TensorProto] = {}  # by content: the pieces have the same ones, under other names
    source_nodes = _take_over(source.graph, "source/", weights)
    pieces = (posterior.graph, translation.graph)
    inputs = {value.name for piece in pieces for value in piece.input}
    used = {name for piece in pieces for part in with_subgraphs(piece) for node in part.node for name in node.input}
    of_sentences = sorted((inputs & used | {"prior_means"}) - {"latents", "max_length", "min_confidence"})
    active = {name: f"active/{name}" for name in of_sentences}
    select_nodes = [make_node("Compress", [name, "active"], [new_name], axis=0) for name, new_name in active.items()]
    first_means = [make_node("Identity", [active["prior_means"]], ["first_means"])]
    later_means = _take_over(posterior.graph, "posterior/", weights, active)
    branches = _branches((first_means, "first_means"), (later_means, "posterior_means"))
    means_nodes = [
        make_node("Constant", [], ["no_round"], value_int=0),
        make_node("Equal", ["iteration", "no_round"], ["is_first"]),
        make_node("If", ["is_first"], ["latents"], **branches),
    ]
    translation_nodes = _take_over(translation.graph, "translation/", weights, active)
    body_nodes = [*select_nodes, *means_nodes, *translation_nodes, *body.node]
    del body.node[:]
    body.node.extend(body_nodes)
    (loop,) = (node for node in main.node if node.op_type == "Loop")
    loop.attribute[0].g.CopyFrom(body)
    main_nodes = [*source_nodes, *main.node]
    del main.node[:]
    main.node.extend(main_nodes)
    main.initializer.extend(weights.values())
    function = onnx.parser.parse_function(_likeliest_where_unsure(vocab_size))
    return _model(main, "lvnar", source.ir_version, [function])


_AROUND_CELLS = """
main (int64[b, s] input_ids, int64[b, s] attention_mask, int64[b, t] targets, bool is_refined)
  => (int64[b, c, k] tokens, float[b, c, n] scores) {
}
"""


def assemble_cells(source: "ModelProto", posterior: "ModelProto", cells: "ModelProto") -> "ModelProto":
    """The pieces of a beam search's last step: cells of the posterior's means; of the prior's, if it is the first."""
    import onnx

    weights: dict[bytes, TensorProto] = {}
    main = onnx.parser.parse_graph(_AROUND_CELLS)
    nodes = _take_over(source.graph, "source/", weights)
    first_means = [onnx.helper.make_node("Identity", ["prior_means"], ["first_means"])]
    later_means = _take_over(posterior.graph, "posterior/", weights)
    branches = _branches((later_means, "posterior_means"), (first_means, "first_means"))
    nodes.append(onnx.helper.make_node("If", ["is_refined"], ["latents"], **branches))
    main.node.extend([*nodes, *_take_over(cells.graph, "cells/", weights)])
    main.initializer.extend(weights.values())
    return _model(main, "lvnar_cells", source.ir_version)


def _branches(*branches: "tuple[list[NodeProto], str]") -> "dict[str, GraphProto]":
    """What a condition has where it holds, and where it does not: nodes, and the float that they give."""
    from onnx import TensorProto, helper

    return {
        name: helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])
        for name, (nodes, output) in zip(("then_branch", "else_branch"), branches, strict=True)
    }


def assemble_one(piece: "ModelProto", name: str) -> "ModelProto":
    """A piece that is a whole graph."""
    import onnx

    weights: dict[bytes, TensorProto] = {}
    nodes = _take_over(piece.graph, "", weights)
    graph = onnx.helper.make_graph(nodes, name, piece.graph.input, piece.graph.output, [*weights.values()])
    return _model(graph, name, piece.ir_version)


def _model(graph: "GraphProto", name: str, ir_version: int, functions: "Sequence[FunctionProto]" = ()) -> "ModelProto":
    """A graph in the versions of the operations that are used here; its functions are put in their places."""
    import onnx
    import onnx.inliner

    graph.name = name
    versions = {"": OPSET, "com.microsoft": 1, DOMAIN: 1}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, producer_name="lvnar_hf")
    model.ir_version = ir_version
    model = onnx.inliner.inline_local_functions(model)
    del model.opset_import[2:]
    return model


def lay_out_for_products(graph: "GraphProto") -> None:
    """Give the tied output projection a transposed copy of the embedding: only stored matrices are quantised.

    Products are said to be float32, which the quantiser cannot infer behind operations that ONNX does not define.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    copies: dict[str, str] = {}
    for part in with_subgraphs(graph):
        nodes = [node for node in part.node if node.op_type == "Transpose" and node.input[0] in weights]
        new_names = {}
        for node in nodes:
            (name,) = node.input
            if name not in copies:
                copies[name] = f"{name}/transposed"
                matrix = numpy_helper.to_array(weights[name]).T.copy()
                graph.initializer.append(numpy_helper.from_array(matrix, copies[name]))
            new_names[node.output[0]] = copies[name]
            part.node.remove(node)
        for node in part.node:
            node.input[:] = [new_names.get(name, name) for name in node.input]
            if node.op_type == "MatMul":
                part.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))


def move_weights_into_loop(graph: "GraphProto") -> None:
    """Give the loop's body, if there is a loop, the weights that are used there alone.

    ONNX Runtime lays weights out for its products when it loads them, if they are not more than one graph further out.
    It then has them twice: for the float32 graph, whose products gain less, that is too much.
    """
    loops = [node for node in graph.node if node.op_type == "Loop"]
    if not loops:
        return
    body = loops[0].attribute[0].g
    used_inside = {name for part in with_subgraphs(body) for node in part.node for name in node.input}
    used_outside = {name for node in graph.node for name in node.input}
    moved = [tensor for tensor in graph.initializer if tensor.name in used_inside - used_outside]
    body.initializer.extend(moved)
    for tensor in moved:
        graph.initializer.remove(tensor)


def with_subgraphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    """The graph, the bodies of its loops and the branches of its conditions, to any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from with_subgraphs(attribute.g)


def _take_over(
    graph: "GraphProto", prefix: str, weights: "dict[bytes, TensorProto]", inputs: dict[str, str] | None = None
) -> "list[NodeProto]":
    """The nodes of a piece, with names of their own; its weights go to `weights`, those that are there already by name.

    What the exporter notes of each node, files of this machine among it, is left behind.

    Args:
        inputs: other names for inputs of the piece.
    """
    names: dict[str, str] = {value.name: value.name for value in (*graph.input, *graph.output)} | (inputs or {})
    for tensor in graph.initializer:
        content = hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)}".encode() + tensor.raw_data).digest()
        if content not in weights:
            weights[content] = type(tensor)()
            weights[content].CopyFrom(tensor)
            del weights[content].metadata_props[:]
            weights[content].name = prefix + tensor.name
        names[tensor.name] = weights[content].name
    nodes = []
    for node in graph.node:
        copy = type(node)()
        copy.CopyFrom(node)
        del copy.metadata_props[:]
        copy.doc_string, copy.name = "", prefix + node.name
        copy.input[:] = [names.get(name, prefix + name) if name else "" for name in node.input]
        copy.output[:] = [names.get(name, prefix + name) if name else "" for name in node.output]
        nodes.append(copy)
    return nodes
