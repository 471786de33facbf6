"""Networks: timm encoders, U-Nets, losses and metrics."""
