"""The main job, end to end, against the emulator: images made, pushed, pushed again, read back and proved."""
