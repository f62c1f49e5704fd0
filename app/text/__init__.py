"""Tokenizer, chat template, detokenizer and transcripts. Must not import a web framework or torch."""
