"""VID: variational information distillation and the methods it is compared with."""
