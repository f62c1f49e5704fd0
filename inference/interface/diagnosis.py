"""What a worker would find on this machine, for `tiller doctor`. Typed data without logic."""

import msgspec


class Gpu(msgspec.Struct, frozen=True):
    """A CUDA device that torch can use."""

    name: str
    total_bytes: int
    free_bytes: int


class ModelFiles(msgspec.Struct, frozen=True):
    """The files of the configured model, or what is needed to get them."""

    directory: str = ""
    """Where they are. Empty: the first start has to download or convert them."""
    todo: str = ""
    """What the first start has to do, such as `download org/model from the Hugging Face hub`."""
    cache_bytes: int = 0
    """The space that this needs in the cache directory."""
    numbers: int = 0
    """How many numbers the weights are. 0: unknown."""


class Diagnosis(msgspec.Struct, frozen=True):
    """Each `…_error` is one line, or empty if all is well."""

    torch: str
    """torch's version."""
    device: str
    """The type of the device that a worker would use: `cpu` or `cuda`. Empty: see `device_error`."""
    device_error: str
    cuda: str
    """The version of CUDA that torch is built for. Empty: torch is built without CUDA."""
    cuda_error: str
    """Why torch can use no GPU."""
    gpus: list[Gpu]
    has_kernels: bool
    """Whether the CPU kernels for this processor are compiled already."""
    compiler: str
    """The path of the C++ compiler. Empty: see `compiler_error`."""
    compiler_error: str
    """Why no C++ compiler can compile the CPU kernels."""
    model: ModelFiles
    model_error: str
    """Why the model's files are not usable, or cannot be got."""
