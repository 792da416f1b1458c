"""Where images come from: drawn, folders, archives, torchvision."""
