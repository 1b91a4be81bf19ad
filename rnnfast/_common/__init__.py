"""The ground floor: errors, files, texts, storage, parameters and plots. It knows no models."""
