"""What every room shares: settings, refusals, students, quantisers, codecs, signatures and bundles.

This room imports none of the others. `errors`, `signing`, `bundle` and `ledger` import neither torch
nor flwr, so that a verifier starts in milliseconds and the edge install stays small.
"""
