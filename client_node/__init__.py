"""A site: its recordings, policy, budget, private training, receipts, releases and inference."""
