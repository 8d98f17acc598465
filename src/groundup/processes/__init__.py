"""Ranks as processes: started, joined, started again, watched and ended."""
