"""Audit rows to one HTML file, a summary and a list of alerts."""
