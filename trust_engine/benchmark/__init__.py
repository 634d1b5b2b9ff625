"""What a run costs, measured on full-size models of random weights.

run            the whole measurement
random_models  full-size models of random weights
clock          time in UNet calls and around them
counting       work and memory on the meta device
tensor_memory  memory of tensors as they come and go
baselines      a step of other methods on the same model
"""
