"""Captioners that know how well each pair was aligned: levels, a decoder with a visual prefix, training, decoding.

    from noisycorr.caption.captioner.best import write_best
    from noisycorr.caption.captioner.stored import load_captioner

    trained = load_captioner(folder)                         # what `noisycorr caption train` wrote
    texts = trained.write(image_features).texts              # (n, d) of the encoder that it was trained with
    best = write_best(trained, image_features, align)        # of several texts the one that also fits, by a scorer

`noisycorr.Captioner` does both, and loads the encoder.

Source: NoC (Kang et al., ICCV 2023).
"""
