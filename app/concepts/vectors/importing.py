"""Makes ImportedVectors from the content of a file, for the served model."""

import numpy as np

from app.concepts.vectors.formats import VectorFile
from app.concepts.vectors.imported import ImportedVectors, ServedModel, bind
from app.concepts.vectors.tensors import read_directions
from app.concepts.vectors.tiller_file import check_model, is_tiller_file, read_tiller_file
from inference.interface.concepts import GivenVectors


def import_vectors(file: VectorFile, served: ServedModel, examples_digest: str) -> ImportedVectors:
    """Strength 1 adds exactly what the file says. Raises InvalidRequest if it does not fit the model.

    `examples_digest`: of the examples to measure the vectors with; empty if there are none.
    """
    is_ours = is_tiller_file(file.metadata)
    if is_ours:
        check_model(file.metadata, served)
    directions = read_directions(file.tensors, served.hidden_size, served.num_layers)
    if is_ours:
        given = read_tiller_file(file.metadata, directions)
    else:
        values = np.concatenate(list(directions.values())).astype("<f4").tobytes()
        given = GivenVectors(blocks=tuple(directions), values=values)
    return bind(given, served, examples_digest)
