"""Decoding of recordings that strangers sent: each in a process of its own, with limits."""
