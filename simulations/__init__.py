"""A whole federation on one machine: data sets, partitions, engines, comparisons and the report.

This room may import all others; none imports it.
"""
