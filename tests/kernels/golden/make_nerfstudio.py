"""Makes nerfstudio_hash.safetensors: what nerfstudio's torch HashEncoding says of some positions, and its gradients.

nerfstudio can't be installed beside what DreamKit needs, so its answers are kept. In an environment of its own with
`pip install --no-deps nerfstudio==1.1.5 viser==0.2.7` and torch, safetensors, jaxtyping, rich, msgspec, websockets:

    python tests/kernels/golden/make_nerfstudio.py
"""

from pathlib import Path

import torch
from nerfstudio.field_components.encodings import HashEncoding
from safetensors.torch import save_file

LEVELS, COARSEST, FINEST, LOG2_SIZE, FEATURES = 6, 4, 100, 6, 2

encoding = HashEncoding(LEVELS, COARSEST, FINEST, LOG2_SIZE, FEATURES, implementation="torch")
generator = torch.Generator().manual_seed(0)
table = torch.randn(encoding.hash_table.shape, generator=generator)
encoding.hash_table.data.copy_(table)
positions = torch.rand(64, 3, generator=generator).requires_grad_()
code = encoding(positions)
incoming = torch.randn(code.shape, generator=generator)
d_positions, d_table = torch.autograd.grad(code, (positions, encoding.hash_table), incoming)
tensors = {
    "positions": positions,
    "table": table,
    "code": code,
    "incoming": incoming,
    "d_positions": d_positions,
    "d_table": d_table,
}
target = Path(__file__).with_name("nerfstudio_hash.safetensors")
save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, target)
