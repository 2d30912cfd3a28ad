"""Making trajectories from true masks: simulated clicks, episodes, reasoning."""
