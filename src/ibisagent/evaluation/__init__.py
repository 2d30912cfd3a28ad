"""Measuring: runs over data sets, named metrics with intervals, comparisons, reports."""
