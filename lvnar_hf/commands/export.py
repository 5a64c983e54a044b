"""`lvnar export`: the ONNX graphs of a model, beside its weights."""

import json
from typing import Annotated, Any

from typer import Option


def export(
    model: Annotated[str, Option(help="Model folder or Hub id.")],
    output_folder: Annotated[
        str | None, Option(help="The graphs go to its onnx/; by default the model's own folder.", show_default=False)
    ] = None,
    search: Annotated[bool, Option("--search", help="The graphs for a beam search too.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Write over graphs that are there.")] = False,
) -> dict[str, Any]:
    """Write the ONNX graphs of a model beside its weights, and compare their translations with PyTorch's.

    onnx/model.onnx is float32, onnx/model_int8.onnx has weights and activations in 8 bits; with --search, so are
    onnx/cells.onnx and onnx/cells_int8.onnx. Of an autoregressive model (Marian) that is to rescore translations,
    onnx/rescorer.onnx and onnx/rescorer_int8.onnx are written. The result is a line in JSON; a float32 graph that
    translates otherwise than PyTorch is an error.
    """
    from lvnar_hf.jobs.export import export_and_compare

    result = export_and_compare(model, output_folder, overwrite, search)
    print(json.dumps(result))
    if result.get("float32", {}).get("different_sentences"):
        raise RuntimeError(f"{result['float32']['file']} translates otherwise than PyTorch: {result['float32']}.")
    return result
