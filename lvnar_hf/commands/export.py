"""`lvnar export`: the ONNX graphs of a model, beside its weights."""

import json
from typing import Annotated, Any

from typer import Option


def export(
    model: Annotated[str, Option(help="Model folder or Hub id.")],
    output_folder: Annotated[
        str | None, Option(help="The graphs go to its onnx/; by default the model's own folder.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Write over graphs that are there.")] = False,
) -> dict[str, Any]:
    """Write the ONNX graphs of a model beside its weights, and compare their translations with PyTorch's.

    onnx/model.onnx is float32, onnx/model_int8.onnx has weights and activations in 8 bits. The result is a line in
    JSON; a float32 graph that translates otherwise than PyTorch is an error.
    """
    from lvnar_hf.jobs.export import export_and_compare

    result = export_and_compare(model, output_folder, overwrite)
    print(json.dumps(result))
    if result["float32"]["different_sentences"]:
        raise RuntimeError(f"{result['float32']['file']} translates otherwise than PyTorch: {result['float32']}.")
    return result
