"""The worker's brain: blocks, how they are filled and what they may take. Knows no Ray."""
