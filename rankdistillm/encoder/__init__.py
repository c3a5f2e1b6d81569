"""The fast path (``model.packed=true``): BERT-like encoders on packed pairs, without padding.

transformers pads every pair of a batch to the longest one and computes all tokens through all
layers. The score needs less, and this room computes only that:

1. *Packed row.* All pairs of a chunk lie end to end in one row ``[1, tokens]``. Embeddings, linear
   layers, norms and activations treat each token alone, so they run on that row as it is.
2. *Segments* (`segments`). A `Segments` records which tokens of the row belong to which pair. It
   travels with the row as the keyword ``segments`` of the model's forward.
3. *Rectangles* (`segments`). Only attention looks from one token to another. Neighbouring pairs of
   similar length are cut from the row and padded to one small rectangle ``[pairs, width]``.
4. *Attention* (`attention`). Two matrix products per rectangle; the result goes back into the row.
   A GPU has kernels for packed rows instead (torch's flash attention, or our own in `kernels`).
5. *Layers* (`layers`). The forward methods of BERT's layers are replaced, the modules and the names
   of their weights stay. A layer computes in plain torch (`layers`); in half precision on a GPU by
   fused kernels, in training too (`cuda`); and for scoring in bf16 on a CPU by oneDNN's fused calls
   (`cpu`). Callers cannot tell which one runs.
6. *Last layer* (`layers`). The head reads the first token of each pair alone, so the last layer
   computes queries, output and feed-forward for those tokens only.

ModernBERT has steps 1 to 4 and keeps its own layers. Any other encoder takes the plain path, which
is transformers' own padded forward; both paths give the same scores up to rounding.

The public interface is what this module exports: `pack_encoder` prepares an encoder in place,
`run_packed` runs it on the rows of a `Segments`, `fused_layers` makes faster layers once for many
calls without gradients, and `row_multiples` tells which row sizes suit a device. `PACKED_MODELS`
and `scoring_layers` say what runs here.

If transformers renames a layer class or an attribute of one, `layers.py` is the file to change
first (``LAYERS`` and the two forward methods), then the constructors of `cpu.CpuLayer` and
`cuda.CudaLayer`; if it changes how an attention function is registered or called, `attention.py`.
"""

from rankdistillm.encoder.attention import PACKED_MODELS
from rankdistillm.encoder.layers import (
    FusedLayers,
    fused_layers,
    pack_encoder,
    run_packed,
    scoring_layers,
)
from rankdistillm.encoder.segments import Segments, row_multiples

__all__ = [
    "PACKED_MODELS",
    "FusedLayers",
    "Segments",
    "fused_layers",
    "pack_encoder",
    "row_multiples",
    "run_packed",
    "scoring_layers",
]
