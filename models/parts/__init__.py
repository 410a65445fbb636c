"""What systems are made of and share: layers, tasks that are drawn, checkpoints of others."""
