"""A migration's report as one page of HTML that needs nothing else: no script, no font, no image, no network.

markup      elements; text is escaped because there is no other way to put it in
style       the page's only style sheet: light and dark, paper
charts      lines, bars and spans as SVG
migration   the page, made of what `ckpt migrate --json` prints
file        written whole or not at all
"""
