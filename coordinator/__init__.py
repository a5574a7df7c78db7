"""The coordinator: registry, rounds, admission, aggregation, releases, and the Flower link."""
