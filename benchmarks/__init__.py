"""One benchmark a claim: `python -m benchmarks.NAME [--json]`."""
