"""The dashboard as a page of its own: Voilà on the loopback, one kernel a visitor, nothing from outside the machine.

It draws nothing itself: `dashboard.ipynb` has one cell, which shows the same Dashboard that a notebook shows, and the
template in `share/` is its frame. The command line calls `serve_dashboard`; Voilà runs in a child process.
"""

from pipeline_lib.web.serve import DashboardServer, serve_dashboard

__all__ = ["DashboardServer", "serve_dashboard"]
