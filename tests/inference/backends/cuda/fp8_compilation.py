"""Compiles the kernels of layers with FP8 weights for a GPU that this host need not have.

    python -m tests.inference.backends.cuda.fp8_compilation 90

The argument is the compute capability. Prints a line of JSON per kernel, as `compilation` does.
"""

import random
import sys

import torch

from inference.backends.cuda import fp8
from tests.inference.backends.cuda.compilation import _Compiler

_SIZES = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (192, 320))
"""Rows and columns of weights. The last has a block that is not whole."""


def main() -> None:
    _Compiler(int(sys.argv[1])).install()
    rng = random.Random(0)
    for outputs, inputs in _SIZES:
        weight = torch.zeros(outputs, inputs, dtype=torch.float8_e4m3fn)
        scales = torch.zeros(-(-outputs // 128), -(-inputs // 128))
        for rows in (1, 16, 17, 33, 65, *(rng.randrange(1, 8192) for _ in range(30))):
            x = torch.empty(rows, inputs, dtype=torch.bfloat16)
            fp8.multiply_blocks(x, weight, scales)
            fp8.quantize_tokens(x)
            fp8.quantize_tensor(x, torch.zeros(()))


if __name__ == "__main__":
    main()
