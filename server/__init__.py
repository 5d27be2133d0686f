"""What the coordinator runs: rounds, aggregation, reference data, and the signed release.

This room imports `fedward.common` only, and never sees a patient's record.
"""
