"""Classifiers from images with wrong labels, on stored features or with an image encoder: CAPro and its neighbours."""
