"""A zoo of small trained models: other architectures, predictions, languages, and derivatives."""
