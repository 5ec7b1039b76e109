"""Audit rows to one HTML file, a summary and a list of alerts."""

from sbdzsl.report.counting import summarise
from sbdzsl.report.gallery import Viewer, make_viewer
from sbdzsl.report.html import write_report
from sbdzsl.report.overlay import GalleryImage, draw_overlay, encode_png, encode_thumbnail
from sbdzsl.report.summary import AuditFacts, Summary

__all__ = [
    "AuditFacts",
    "GalleryImage",
    "Summary",
    "Viewer",
    "draw_overlay",
    "encode_png",
    "encode_thumbnail",
    "make_viewer",
    "summarise",
    "write_report",
]
