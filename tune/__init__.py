"""Searches of guidance strengths with Ray Tune: thin shells over the loop's own measures."""
