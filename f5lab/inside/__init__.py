"""Looking into the model: activations by layer, steps of the ODE, which character drives which frame."""
