"""The report: one self-contained HTML file made from the files of run folders, never from models."""

from .html import write_report

__all__ = ["write_report"]
