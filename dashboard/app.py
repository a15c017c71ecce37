"""Entry of `streamlit run`: the frame around every page."""

from __future__ import annotations

import streamlit as st

from dashboard.navigation import PAGES

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="6" fill="#1f6aa5"/>'
    '<path d="M5 10h14M9 16h18M13 22h9" stroke="#fff" stroke-width="3.4" stroke-linecap="round"/></svg>'
)
STYLE = """<style>
.stApp [data-testid="stMetricValue"], .stApp [data-testid="stMetricDelta"] { font-variant-numeric: tabular-nums; }
.stApp h1 { font-size: 1.45rem; font-weight: 600; padding: 0 0 0.35rem; letter-spacing: -0.01em; }
.stApp h3 { font-size: 1.05rem; font-weight: 600; padding: 0.5rem 0 0; }
.stApp [data-testid="stMetric"] { padding: 0; }
.stApp .stMainBlockContainer { padding-left: 2.2rem; padding-right: 2.2rem; padding-bottom: 1.5rem; }
</style>"""


def main() -> None:
    """Draw the page that the URL names."""
    st.set_page_config(page_title="spanlake", page_icon=ICON, layout="wide", initial_sidebar_state="collapsed")
    st.html(STYLE)
    pages = [st.Page(entry.render, title=entry.title, url_path=entry.path, default=not entry.path) for entry in PAGES]
    st.navigation(pages, position="top").run()


main()
