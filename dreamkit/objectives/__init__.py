"""Score-distillation objectives: pure mathematics, registered by name."""
