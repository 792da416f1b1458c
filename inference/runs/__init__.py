"""What every command shares: options, run folders, training, the order of a study."""
