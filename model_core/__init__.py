"""Speech: audio, features, the mixture-of-experts model, adapters, decoding, evaluation."""
