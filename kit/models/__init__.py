"""Networks: timm encoders, the slim DynamicUnet, losses and metrics."""
