"""What a process sets about itself: its memory, and its end when its parent ends."""
