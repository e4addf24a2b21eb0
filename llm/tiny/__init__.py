"""The world of the embedded default: posts, an imperfect writer, a small prior, its reward model and an exact judge."""
