"""Live transcription over gRPC."""
