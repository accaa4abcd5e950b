"""From a configuration to a trained model: the step, its mapping over devices, the loop, checkpoints, telemetry."""
