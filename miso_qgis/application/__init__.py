"""What the plugin does inside QGIS, without widgets and without pip packages."""
