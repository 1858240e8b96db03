"""NoisyTune: noise on the pretrained weights."""
