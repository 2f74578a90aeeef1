"""Simulators of the outside world, used by the demo, the tests and the benches alike."""
