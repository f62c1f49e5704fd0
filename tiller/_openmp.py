"""Settings of OpenMP, whose threads torch uses. It reads them when torch is imported, so they come first.

A thread of OpenMP that waits for work polls for milliseconds. Meanwhile Tiller's own threads, or another
process, need its processor. The server sets the same for its worker.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
