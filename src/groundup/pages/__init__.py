"""Local web pages: the hardened app they are served by, their look, and the charts they draw."""
