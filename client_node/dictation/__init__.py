"""The dictation page: speak or drop a file, correct the text, take it along."""
