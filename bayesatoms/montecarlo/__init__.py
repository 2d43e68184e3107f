"""Theory wing: kernels -> engine -> pool. Nothing here knows of images, priors or likelihoods."""
