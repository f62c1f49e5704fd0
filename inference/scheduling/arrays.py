"""Types of arrays on the host."""

import numpy as np
from numpy.typing import NDArray

Array64 = NDArray[np.float64]
Array32 = NDArray[np.float32]
