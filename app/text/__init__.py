"""Tokenizer, chat template, decoding and transcripts. Must not import a web framework or torch."""
