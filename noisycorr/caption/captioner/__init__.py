"""Captioners that know how well each pair was aligned: levels, a decoder with a visual prefix, training, decoding.

    from noisycorr.captioner.best import make_writer
    from noisycorr.captioner.stored import load_captioner

    captioner = load_captioner(folder)                       # what `noisycorr caption train` wrote
    write = make_writer(captioner, image_features)           # (n, d) of the encoder that it was trained with
    texts = write(np.array([0, 5, 7]))

Source: NoC (Kang et al., ICCV 2023).
"""
