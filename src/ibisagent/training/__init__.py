"""Training: the reward audit, and the pure parts of reinforcement learning (advantages, loss)."""
