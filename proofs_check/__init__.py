"""Every theorem, proposition and numbered equation of the paper, and what goes beyond it, as checks that can fail.

`python -m proofs_check` runs them. A claim is registered by `proofs_check.claims.claim`; `proofs_check.registry` knows
which modules hold claims.
"""
