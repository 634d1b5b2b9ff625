"""Number formats of model files: which weights cannot be read as they are stored.

The one list that every command goes by: loading, fingerprints, verifying, applying and exporting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import ModelError
from ..io.safetensors import DTYPES, Header

# Parts of a tensor's name beside a weight that is stored scaled or in a few bits.
_SCALES = re.compile(
    r"(?:^|\.)(?:"
    r"weight_scale\w*|scale_weight\w*|weight\.scale\w*|scaled_fp8|comfy_quant|(?:input|output)_scale|"
    r"scale_(?:input|output|inv)|"  # float8 and int8, by ComfyUI, kohya, TensorRT, DeepSeek
    r"(?:nested_)?(?:absmax|quant_map)|quant_state|SCB|weight_format|"  # bitsandbytes
    r"qweight|qzeros|scales|g_idx|qscale|"  # GPTQ, AWQ
    r"_data|_scale|_zeropoint|"  # quanto
    r"w(?:c|t)?scales?|smooth_factor\w*|"  # SVDQuant
    r"weight_packed|weight_zero_point|zero_point|"  # compressed-tensors
    r"W_q|tensor_impl"  # HQQ, torchao
    r")(?:\.|$)"
)
_DECLARED = "_quantization_metadata"
_WHOLE = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def check_format(where: str, header: Header) -> None:
    """Raise ModelError for a file whose weights are quantised or scaled, naming the first."""
    said = quantised({name: (e.dtype, e.shape) for name, e in header.entries.items()})
    if said is None and header.metadata.get(_DECLARED, "{}").strip() not in ("", "{}"):
        said = f"its metadata declares it in {_DECLARED}"
    if said is not None:
        raise ModelError(
            f"{where}: its weights are stored scaled or quantised ({said}), and a change of them "
            "would be lost in rounding; take the float16 or bfloat16 version of the model"
        )


def quantised(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str | None:
    """Say what shows that a file's weights are quantised; None if nothing does.

    tensors: by name, safetensors' name of the dtype, and the shape. Plain float8 is none: its
    values are those of the model.
    """
    for name, (dtype, shape) in tensors.items():
        if _SCALES.search(name):
            return name
        weight = name.endswith(".weight") and len(shape) > 1
        if weight and (dtype in _WHOLE or dtype not in DTYPES):
            return f"{name} is of type {dtype}"
    return None
