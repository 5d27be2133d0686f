"""What runs at a hospital: the local private round, its budget, and the box beside the scanner.

This room imports `fedward.common` only. Everything under `client/edge` does without torch and flwr.
"""
