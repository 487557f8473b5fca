"""What every program needs once: files written whole, processes that end with their parent."""
