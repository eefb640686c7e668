"""The engine: everything that turns rasters into maps, without QGIS and without torch.

It runs as a child process in an environment of its own. ``schema``, ``errors``, ``messages`` and ``manifest`` use the
standard library only, so that the plugin inside QGIS can import them too; the other modules need numpy, scipy,
rasterio, shapely, pyogrio and onnxruntime. Nothing is imported here.
"""
