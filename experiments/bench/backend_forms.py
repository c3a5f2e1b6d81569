"""A student in the forms of sentence-transformers' OpenVINO and ONNX backends.

Runs in an environment of its own, which has one of the backends; needs nothing of rankdistillm.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder

Pairs = Sequence[tuple[str, str]]  # query, passage
LENGTH = 292  # of a pair in tokens, as on all sides


def load(
    model: str, backend: str, file: str | None, precision: str, threads: int, batch_size: int
) -> Callable[[Pairs], np.ndarray]:
    """A function that scores pairs with the weights ``file`` of the folder ``model``.

    Where the CPU has AMX, OpenVINO computes in bf16 unless told otherwise, so float32 is asked for;
    its int8 leaves the other operations to that default.
    """
    options: dict[str, Any] = {"file_name": file} if file else {}
    if backend == "openvino":
        options["ov_config"] = {"INFERENCE_NUM_THREADS": threads}
        hint = {"fp32": "f32", "bf16": "bf16"}.get(precision)
        if hint:
            options["ov_config"]["INFERENCE_PRECISION_HINT"] = hint
    elif backend == "onnx":
        import onnxruntime

        options["provider"] = "CPUExecutionProvider"
        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].intra_op_num_threads = threads
    encoder: Any = CrossEncoder(
        model, device="cpu", backend=backend, max_length=LENGTH, model_kwargs=options
    )
    autocast = backend == "torch" and precision == "bf16"

    def score(pairs: Pairs) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return encoder.predict(pairs, batch_size=batch_size, show_progress_bar=False)

    return score


def write(student: str, backend: str, output: str, texts: list[str]) -> None:
    """Write all forms of the backend; ``texts`` are what OpenVINO's int8 is calibrated on."""
    model: Any = CrossEncoder(
        student, device="cpu", backend=backend, max_length=LENGTH, model_kwargs={"export": True}
    )
    model.save_pretrained(output)
    if backend == "openvino":
        from sentence_transformers.backend import export_static_quantized_openvino_model

        calibration = Path(output) / "calibration"
        calibration.mkdir()
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (calibration / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        export_static_quantized_openvino_model(
            model,
            None,
            output,
            dataset_name=str(calibration),
            dataset_config_name="default",
            dataset_split="train",
            column_name="text",
        )
    else:
        from sentence_transformers.backend import (
            export_dynamic_quantized_onnx_model,
            export_optimized_onnx_model,
        )

        export_optimized_onnx_model(model, "O2", output)
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", output)


if __name__ == "__main__":
    write(**json.load(sys.stdin))
