"""Training, evaluation and export of MISO and its baselines. Never imported by the engine or the plugin."""
