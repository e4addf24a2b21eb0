"""The experiments: the paper's tables and claims as commands, on the embedded default or any model that fits."""
