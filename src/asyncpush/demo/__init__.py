"""The main job against the emulator, end to end: images are made, pushed, pushed again and verified."""
