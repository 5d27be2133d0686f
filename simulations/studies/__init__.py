"""One module a published table: `python -m fedward.simulations.studies.NAME --json`."""
