"""Turns the worker's report of a concept into the report of the API. Knows no HTTP."""

import msgspec

from app.concepts.neutral_texts import NEUTRAL_QUESTIONS
from app.schemas.reports import ConceptReport, SampleAnswer
from app.text.tokenizer import Tokenizer
from inference.interface.concepts import ConceptReport as WorkerReport
from inference.interface.concepts import SampleAnswer as WorkerSample


def present(report: WorkerReport, tokenizer: Tokenizer) -> ConceptReport:
    """The same report, with the words of its sample answers."""
    fields = msgspec.structs.asdict(report)
    fields["samples"] = [_present_sample(sample, tokenizer) for sample in report.samples]
    return ConceptReport(**fields)


def _present_sample(sample: WorkerSample, tokenizer: Tokenizer) -> SampleAnswer:
    stream = tokenizer.decode_stream()
    pieces = [piece for token_id in sample.token_ids for piece in stream.push(token_id)]
    text = "".join([*pieces, *stream.finish()])
    return SampleAnswer(sample.strength, NEUTRAL_QUESTIONS[sample.question], text)
