"""Continues a stream whose engine or site was lost: what is kept for it, what is asked, the seam.

`docs/continuation.md` says what clients see; `core/continuation` decides which way is honest.
"""
