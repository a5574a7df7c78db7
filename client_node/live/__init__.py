"""Streaming transcription: audio in as it is spoken, stable text out while it is spoken."""
