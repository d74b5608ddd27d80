"""The fast family: queries selected from the feature map, deformable decoder, denoising."""
