"""Services for every command: files, locks, worker processes, signals, devices, memory and the terminal."""
