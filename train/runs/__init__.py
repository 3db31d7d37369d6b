"""The folder of a run: settings, data, model, progress, curves."""
