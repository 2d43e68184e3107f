"""Theory wing: kernels -> chains -> pool. Nothing here knows of images, priors or likelihoods."""
