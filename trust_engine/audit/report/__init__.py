"""What an audit says: in JSON, in words, on a page, in the terminal.

summary     all figures, as JSON
verdict     the verdict in a paragraph, and what it does not cover
terminal    the figures for a terminal
page        audit.html, with pictures
page_style  its looks
"""
