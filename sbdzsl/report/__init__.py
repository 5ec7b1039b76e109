"""Audit rows to one HTML file, a summary and a list of alerts."""

from sbdzsl.report.html import write_report
from sbdzsl.report.overlay import GalleryImage, draw_overlay, encode_png, encode_thumbnail
from sbdzsl.report.summary import AuditFacts, Summary, summarise

__all__ = [
    "AuditFacts",
    "GalleryImage",
    "Summary",
    "draw_overlay",
    "encode_png",
    "encode_thumbnail",
    "summarise",
    "write_report",
]
