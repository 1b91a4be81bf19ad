"""The ground floor: errors, files, texts, storage, progress bars and plots. It knows no models."""
