"""What surrounds a run: folder, lock, manifest, metrics log, progress, preemption, watchdog, coordination, start-up."""
