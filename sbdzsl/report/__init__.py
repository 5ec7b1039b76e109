"""Audit rows to one HTML file, a summary and a list of alerts."""

from sbdzsl.report.summary import AuditFacts, Summary, summarise

__all__ = ["AuditFacts", "Summary", "summarise"]
