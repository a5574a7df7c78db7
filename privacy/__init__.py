"""Privacy: plans, per-subject gradients, mechanism, accountant, budget, ledger, signing."""
