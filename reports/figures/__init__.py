"""Figures of the page: seaborn drawings as inline SVG that follow the page's light or dark theme."""
